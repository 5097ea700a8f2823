"""What every command shares: parameters, answers, and models by reference."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from denoise.config import Config

PARAMS = Path("params.yaml")

Settings = Annotated[list[str] | None, typer.Option("--set", "-S", metavar="KEY=VALUE", help="A key of params.yaml.")]
AsJson = Annotated[bool, typer.Option("--json", help="Answer with one JSON document on standard output.")]


def configuration(overrides: list[str] | None) -> "Config":
    """Return params.yaml of this folder (or the defaults) with overrides."""
    from denoise.config import load_config

    return load_config(PARAMS, overrides or [])


def answer(document: Any, text: str, as_json: bool) -> None:
    """Print the answer of a command: one JSON document, or text for people."""
    print(json.dumps(document, indent=1, default=str) if as_json else text)


def tracking_uri(config: "Config") -> str:
    """Return the absolute address of MLflow."""
    from pipelines.tracking import resolve_uri

    return resolve_uri(config.tracking.uri, Path.cwd())


def find_model(config: "Config", reference: str) -> Path:
    """Return the folder of a model, given as a folder or as models:/NAME@ALIAS."""
    if not reference.startswith("models:/"):
        return Path(reference)
    from pipelines.registry import model_folder

    return model_folder(tracking_uri(config), reference)
