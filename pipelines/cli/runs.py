"""``denoise runs``: the journals of training runs, and what MLflow lacks of them."""

from typing import Annotated, Any

import typer

from denoise.errors import UserError
from pipelines.cli.common import AsJson, Settings, answer, configuration, tracking_uri

app = typer.Typer(help="List runs, and send MLflow what it lacks of them.", no_args_is_help=True, rich_markup_mode=None)

Names = Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Runs; without, all in ray.storage.")]


@app.command("list")
def list_(settings: Settings = None, as_json: AsJson = False) -> None:
    """List the runs in ray.storage: the last step, the status, and what MLflow lacks of each.

    Example: denoise runs list --json
    """
    from pipelines.tracking import lifecycle

    config = configuration(settings)
    storage, address = config.ray.storage, tracking_uri(config)
    rows = [lifecycle.list_row(folder, address) for folder in lifecycle.find_journals(storage).values()]
    answer(rows, "\n".join(map(_line, rows)) or f"there are no runs in {storage} yet", as_json)


@app.command()
def sync(names: Names = None, settings: Settings = None, as_json: AsJson = False) -> None:
    """Send MLflow what it lacks of runs because it did not answer: metrics, images, the model, the status.

    Example: denoise runs sync

    Example: denoise runs sync n2n-5f3a --json
    """
    from pipelines.tracking import lifecycle

    config = configuration(settings)
    storage, address = config.ray.storage, tracking_uri(config)
    rows: list[dict[str, Any]] = []
    failures = []
    for name, folder in lifecycle.find_journals(storage, names or []).items():
        try:
            rows.append(lifecycle.sync(folder, address)._asdict())
        except UserError as error:  # the others may be for another MLflow
            failures.append(f"{name} is not synced: {str(error).removesuffix('.')}")
    lines = [
        f"{row['name']}  {row['status']}  sent {row['metrics']} metrics and {row['images']} images" for row in rows
    ]
    answer(rows, "\n".join(lines) or f"no runs in {storage} were synced", as_json)
    if failures:
        raise UserError("; ".join(failures))


def _line(row: dict[str, Any]) -> str:
    from pipelines.tracking.lifecycle import MissingData

    lacks = f"MLflow lacks {MissingData(**row['missing'])}" if row["missing"] else f"not compared: {row['error']}"
    return f"{row['name']}  step {row['steps']}  {row['status']}  {lacks}"
