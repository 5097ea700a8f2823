"""``denoise train`` and ``denoise presets``."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli.common import AsJson, Overrides, Settings, all_overrides, answer, configuration

if TYPE_CHECKING:
    from denoise.config import Config


def train(
    overrides: Overrides = None,
    local: Annotated[
        bool, typer.Option("--local", help="In this process, without Ray and MLflow; torchrun implies it.")
    ] = False,
    name: Annotated[str | None, typer.Option(help="Name of the run; the same name resumes it.")] = None,
    out: Annotated[Path | None, typer.Option(help="The model folder to write; runs/NAME/model by default.")] = None,
    inject: Annotated[
        list[str] | None,
        typer.Option(metavar="FAULT", help="Inject a fault on purpose, e.g. kill:rank=1,step=37 (docs/training.md)."),
    ] = None,
    profile: Annotated[
        bool, typer.Option(help="Write a profile of ten steps to runs/NAME/profile, with a page for the browser.")
    ] = False,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Train a method, or a published recipe. The same command resumes an interrupted run, and returns a finished one.

    Example: denoise train method=n2n noise=gauss25 train.steps=3000

    Example: denoise train preset=laine2019-gauss25-ssdn-known
    """
    from denoise.training.fault_injection import parse_fault
    from pipelines.training.progress import Stopped

    config = configuration(all_overrides(overrides, settings))
    faults = [parse_fault(text) for text in inject or ()]
    try:
        if local or "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun would take --local for an option of its own
            from pipelines.training.local import train_locally

            folder = train_locally(config, name, out, faults, profile)
            if os.environ.get("RANK", "0") == "0":  # torchrun runs this command on every rank
                _answer(config, folder, {"model": str(folder)}, f"model: {folder}", as_json)
            return
        from pipelines.training.on_ray import train_on_ray

        result = train_on_ray(config, name, out, faults, profile)
    except KeyboardInterrupt:
        print("interrupted; the same command resumes from the last checkpoint.", file=sys.stderr)
        raise typer.Exit(130) from None
    except Stopped as stopped:
        print(stopped.message, file=sys.stderr)
        raise
    document = {"name": result.name, "model": str(result.folder), "run_id": result.run_id, **result.metrics}
    where = f"MLflow run {result.run_id}" if result.run_id else "not in MLflow yet: denoise runs sync"
    _answer(config, result.folder, document, f"model: {result.folder} ({where})", as_json)


def _answer(config: "Config", model: Path, document: dict[str, Any], text: str, as_json: bool) -> None:
    """Print the answer of a training, with the commands that use its model."""
    from pipelines.cli.next_commands import after_training
    from pipelines.training.estimate import estimate_after_training

    estimate = estimate_after_training(config, model)
    restore, *register = after_training(config, model)
    lines = [
        text,
        *([_estimate_line(estimate)] if estimate else []),
        "to restore an image with it:",
        f"  {restore}",
        "to register it:",
        *(f"  {line}" for line in register),
    ]
    estimated = {"estimate": estimate} if estimate else {}
    answer({**document, **estimated, "next": [restore, *register]}, "\n".join(lines), as_json)


def _estimate_line(estimate: "Mapping[str, Any]") -> str:
    """Return an estimate of a model without clean images as one line."""
    from pipelines.report.residual import headline

    if "failure" in estimate:
        return f"its PSNR could not be estimated: {estimate['failure']}"
    seen = ", which it was trained on" if estimate["split"] == "train" else ""
    found = estimate["estimate"]
    return f"{headline(found)}, of {estimate['data']}{seen}, by {found['source']}, if {found['assumption']}"


def presets(
    name: Annotated[str | None, typer.Argument(help="One recipe, to see what it sets.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the published recipes that `denoise train preset=NAME` knows, or show one.

    Example: denoise presets laine2019-gauss25-ssdn-known
    """
    from dataclasses import asdict

    from pipelines.training import recipes

    if name is None:
        titles = {key: recipe.title for key, recipe in recipes.recipes().items()}
        width = max(map(len, titles))
        answer(titles, "\n".join(f"{key:{width}}  {title}" for key, title in titles.items()), as_json)
        return
    recipe = recipes.load_recipe(name)
    answer(asdict(recipe), recipes.describe(recipe), as_json)
