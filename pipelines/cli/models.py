"""``denoise models``: the registered denoisers."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli.common import AsJson, Settings, answer, configuration, tracking_uri
from pipelines.console import say

if TYPE_CHECKING:
    from denoise.config import Config

app = typer.Typer(
    help="List, show, register, promote, roll back and fetch models.", no_args_is_help=True, rich_markup_mode=None
)

Name = Annotated[str, typer.Argument(help="Registered name, e.g. denoise-gauss25.")]
Record = Annotated[Path | None, typer.Option("--out", help="Also write the answer to this JSON file.")]


# What --out writes. The run is another one in a new MLflow, so that the pipeline promotes there.
RECORD = ("name", "version", "run_id", "method", "noise", "data", "protocol", "psnr", "ssim")
CHAMPION_RECORD = ("name", "method", "protocol", "data", "psnr")
EXPERIMENT = "DVC_EXP_NAME"  # set by DVC while `dvc exp run` runs a stage


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
    model: Annotated[
        Path | None, typer.Argument(help="A model folder that `denoise train` made; by default those of the pipeline.")
    ] = None,
    scores: Annotated[Path | None, typer.Option(help="A scores.json of `denoise evaluate`, or its folder.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Also write the answer to this JSON file; for the pipeline's models, a folder.")
    ] = None,
    champion: Annotated[
        Path | None, typer.Option(help="Also promote the best version, and write the champion to this JSON file.")
    ] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Register a trained model, with its scores, as a new version of denoise-NOISE.

    Without MODEL, those of the methods that params.yaml compares, scored on the first set of data.test. A model that is
    registered already is not registered twice. --champion does what `denoise models promote` does, unless this file and
    the files of --out are there and say nothing new: a rollback stays.

    Example: denoise models register models/n2n --scores evaluation/n2n/samples/float
    """
    from denoise.files import write_json

    config = configuration(settings)
    if model is not None:
        rows = {"": _register(config, model, scores)}
    else:
        rows = {
            f"{method}.json": _register(config, Path("models") / method, _pipeline_scores(config, method))
            for method in config.compare
        }
    lines = [f"{row['name']} version {row['version']}: {row['method']}, {_score(row)}" for row in rows.values()]
    result: Any = rows[""] if model else [*rows.values()]
    records = {out / file: {key: row[key] for key in RECORD} for file, row in rows.items()} if out else {}
    if champion and not (records and champion.exists() and all(_holds(*record) for record in records.items())):
        move, line = _promote(config, next(iter(rows.values()))["name"], None, champion)
        result, lines = {"registered": result, "champion": move}, [*lines, line]
    for file, record in records.items():  # once the champion is chosen: a run that is cut off in between chooses again
        write_json(file, record)
    answer(result, "\n".join(lines), as_json)


@app.command()
def promote(
    name: Name,
    version: Annotated[str | None, typer.Option(help="The version to promote; by default the best.")] = None,
    out: Record = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Make a version the @champion, if it is better than the noisy images, and than the champion in the same setting.

    Example: denoise models promote denoise-gauss25
    """
    move, line = _promote(configuration(settings), name, version, out)
    answer(move, line, as_json)


@app.command()
def fetch(
    reference: Annotated[str, typer.Argument(metavar="MODEL", help="models:/NAME@ALIAS or models:/NAME/VERSION.")],
    out: Annotated[Path, typer.Option(help="The folder to make, which mlflow.pyfunc.load_model takes.")],
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Copy a registered model with its code, once all of it is what was registered; MLflow itself compares nothing.

    Example: denoise models fetch models:/denoise-gauss25@champion --out champion
    """
    from pipelines.registry import versions

    row = versions.fetch_model(tracking_uri(configuration(settings)), reference, out)
    answer(row | {"folder": str(out)}, f"{out}: {row['name']} version {row['version']}", as_json)


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


def _pipeline_scores(config: "Config", method: str) -> Path | None:
    """Return the scores that the pipeline registers a method with, None where it scores on no set."""
    from pipelines.evaluate import find_scores

    if not config.data.test:
        return None
    return find_scores(Path("evaluation") / method / config.data.test[0], config.evaluate.protocol)


def _register(config: "Config", model: Path, scores: Path | None) -> "dict[str, Any]":
    from pipelines.registry import versions
    from pipelines.tracking.recover import run_of_model

    uri = tracking_uri(config)
    figures = _read_scores(scores) if scores else None
    run_id = run_of_model(uri, config.tracking.experiment, config.ray.storage, model)
    row = versions.register(uri, model, None if EXPERIMENT in os.environ else figures, run_id)
    # An experiment leaves the scores by which a model is compared, perhaps those of the champion, as they are.
    return row if figures is None or row["psnr"] is not None else versions.register(uri, model, figures, run_id)


def _holds(file: Path, record: "dict[str, Any]") -> bool:
    """Return whether a file holds a record already."""
    from denoise.files import json_text

    return file.is_file() and file.read_text(encoding="utf-8") == json_text(record)


def _promote(config: "Config", name: str, version: str | None, out: Path | None) -> "tuple[dict[str, Any], str]":
    """Promote a version, the best one by default; return the champion and a line for the user."""
    from denoise.files import write_json
    from pipelines.registry import promotion

    uri = tracking_uri(config)
    if experiment := os.environ.get(EXPERIMENT):  # a DVC experiment leaves that to the user
        move = _champion(uri, name)
        advice = f"to promote its best model: denoise models promote {name}"
        line = f"the experiment {experiment} leaves @champion alone; {advice}"
    else:
        move = promotion.promote(uri, name, version)
        for refusal in move["refused"]:
            say(f"warning: {refusal}.")
        verb = "is now" if move["changed"] else "already was"
        line = f"{name} version {move['version']} {verb} @champion ({_score(move)})"
    if out:
        write_json(out, {key: move.get(key) for key in CHAMPION_RECORD})
    return move, line


def _champion(uri: str, name: str) -> "dict[str, Any]":
    from pipelines.registry import versions
    from pipelines.registry.rows import champion_of

    return champion_of(versions.show(uri, name)["versions"]) or {"name": name}


def _read_scores(path: Path) -> "dict[str, object]":
    from denoise.documents import parse_json
    from denoise.errors import UserError
    from pipelines.evaluate import find_scores

    file = find_scores(path)
    try:
        scores = parse_json(file.read_bytes())
    except (OSError, ValueError):
        scores = None
    if not isinstance(scores, dict):
        raise UserError(f"{file} is no file of scores; make one with `denoise evaluate MODEL --out FOLDER`.")
    return scores
