"""``denoise models``: the registered denoisers."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.common import AsJson, Settings, answer, configuration, tracking_uri

app = typer.Typer(
    help="List, show, register, promote and roll back models.", no_args_is_help=True, rich_markup_mode=None
)

Name = Annotated[str, typer.Argument(help="Registered name, e.g. denoise-gauss25.")]
Record = Annotated[Path | None, typer.Option("--out", help="Also write the answer to this JSON file.")]


@app.command("list")
def list_(settings: Settings = None, as_json: AsJson = False) -> None:
    """List all registered versions.

    Example: denoise models list --json
    """
    from pipelines.registry import versions

    rows = versions.list_models(tracking_uri(configuration(settings)))
    lines = [
        f"{row['name']}  version {row['version']}  {row['method']}  {_score(row)}"
        + "".join(f"  @{alias}" for alias in row["aliases"])
        for row in rows
    ]
    answer(rows, "\n".join(lines) or "no models are registered yet", as_json)


@app.command()
def show(name: Name, settings: Settings = None, as_json: AsJson = False) -> None:
    """Show the versions of a model and every move of its champion.

    Example: denoise models show denoise-gauss25
    """
    from pipelines.registry import versions

    document = versions.show(tracking_uri(configuration(settings)), name)
    answer(document, json.dumps(document, indent=1, default=str), as_json)


@app.command()
def register(
    model: Annotated[Path, typer.Argument(help="A model folder that `denoise train` made.")],
    scores: Annotated[Path | None, typer.Option(help="A scores.json of `denoise evaluate`, or its folder.")] = None,
    out: Record = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Register a trained model, with its scores, as a new version of denoise-NOISE.

    Example: denoise models register models/n2n --scores evaluation/n2n/samples
    """
    from denoise.denoiser import read_card
    from denoise.files import write_json
    from pipelines.registry import versions
    from pipelines.tracking.client import existing_run_id

    config = configuration(settings)
    uri = tracking_uri(config)
    figures = _read_scores(scores) if scores else None
    run_id = existing_run_id(uri, config.tracking.experiment, read_card(model)["provenance"]["run"])
    row = versions.register(uri, model, figures, run_id)
    if out:
        write_json(out, {key: row[key] for key in ("name", "method", "noise", "data", "protocol", "psnr", "ssim")})
    answer(row, f"{row['name']} version {row['version']}: {row['method']}, {_score(row)}", as_json)


@app.command()
def promote(
    name: Name,
    version: Annotated[str | None, typer.Option(help="The version to promote; by default the best.")] = None,
    out: Record = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Make a version the @champion, if it is better than the present one under the same protocol.

    Example: denoise models promote denoise-gauss25
    """
    from denoise.files import write_json
    from pipelines.registry import promotion

    move = promotion.promote(tracking_uri(configuration(settings)), name, version)
    if out:
        write_json(out, {key: move.get(key) for key in ("name", "method", "protocol", "data", "psnr")})
    verb = "is now" if move["changed"] else "already was"
    answer(move, f"{name} version {move['version']} {verb} @champion ({_score(move)})", as_json)


@app.command()
def rollback(name: Name, settings: Settings = None, as_json: AsJson = False) -> None:
    """Give @champion back to the version that had it before.

    Example: denoise models rollback denoise-gauss25
    """
    from pipelines.registry import promotion

    move = promotion.rollback(tracking_uri(configuration(settings)), name)
    answer(move, f"{name} version {move['version']} is @champion again", as_json)


def _score(row: "dict[str, object]") -> str:
    if row.get("psnr") is None:
        return "not evaluated"
    return f"{float(str(row['psnr'])):.2f} dB on {row['data']} ({row['protocol']})"


def _read_scores(path: Path) -> "dict[str, object]":
    from denoise.errors import UserError
    from pipelines.evaluate import SCORES

    file = path / SCORES if path.is_dir() else path
    try:
        scores: dict[str, object] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{file} is no file of scores; make one with `denoise evaluate MODEL --out FOLDER`.") from None
    return scores
