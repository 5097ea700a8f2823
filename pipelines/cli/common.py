"""Shared by all commands: options, overrides of params.yaml, answers, and models by reference."""

import json
from collections.abc import Mapping
from errno import EACCES, EDQUOT, ENOSPC, EPERM, EROFS
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from denoise.errors import UserError
from denoise.files import finite_or_null
from denoise.printable import printable
from denoise.redaction import redacted, without_passwords

if TYPE_CHECKING:
    from denoise.config import Config
    from denoise.denoiser import Denoiser

PARAMS = Path("params.yaml")

Settings = Annotated[list[str] | None, typer.Option("--set", "-S", metavar="KEY=VALUE", help="A key of params.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Keys of params.yaml; -S KEY=VALUE does the same, and wins."),
]
Axes = Annotated[
    str | None, typer.Option(help="Of stacks, a letter for each side, e.g. TZCYX. Default: what the file says.")
]
Channels = Annotated[
    str, typer.Option(help="Of stacks, what C is: each channel an image, joint as colour, or the number of one.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Answer with one JSON document on standard output.")]


def all_overrides(overrides: list[str] | None, settings: list[str] | None) -> list[str]:
    """Return a command's KEY=VALUE arguments, followed by those of its ``-S`` options: of one key the last counts."""
    return [*(overrides or ()), *(settings or ())]


def configuration(overrides: list[str] | None, recipe: Mapping[str, Any] | None = None) -> "Config":
    """Return params.yaml of this folder (or the defaults), with a recipe laid over it, and then overrides.

    Without ``recipe`` it is the published one that the key ``preset`` names, if any.
    """
    from denoise.config import load_config

    config = load_config(PARAMS, overrides or [], recipe)
    if recipe is None and config.preset is not None:  # an override may name it: the keys have to be read first
        from pipelines.training.recipes import load_recipe

        config = load_config(PARAMS, overrides or [], load_recipe(config.preset).config)
    return config


def answer(document: Any, text: str, as_json: bool) -> None:
    """Print the answer of a command, without passwords of addresses: one JSON document, or text for people.

    A number that is not finite is null in JSON; characters of names that would steer the terminal are escaped in text.
    """
    if as_json:
        print(json.dumps(finite_or_null(redacted(document)), indent=1, default=str, allow_nan=False))
    else:
        print(printable(without_passwords(text), keep="\n"))


def explained(error: Exception) -> Exception:
    """Return a missing right, a read-only folder or a full disk as one sentence, every other exception as it is."""
    if not isinstance(error, OSError) or error.errno not in (EACCES, EPERM, EROFS, ENOSPC, EDQUOT):
        return error
    return UserError(
        f"{error.filename or 'a file'} cannot be used ({error.strerror}): check the rights on it and the space on its "
        "disk, or name another place, and run the same command again."
    )


def tracking_uri(config: "Config") -> str:
    """Return the absolute address of MLflow."""
    from pipelines.tracking.client import resolve_uri

    return resolve_uri(config.tracking.uri, Path.cwd())


def open_model(config: "Config", reference: str, noise_name: str | None = None) -> "Denoiser":
    """Return the denoiser of a folder, of models:/NAME@ALIAS, or of a method that needs no training, by its name.

    An untrained method gets the given noise (by default the configuration's) and the configuration's colours; a trained
    model knows its own. ``evaluate.passes`` and ``evaluate.average`` say how passes are averaged, ``evaluate.tile`` and
    ``evaluate.overlap`` by which tiles images are restored.
    """
    from denoise import distributed
    from denoise.denoiser import CARD, load_denoiser, untrained_denoiser
    from denoise.methods import METHODS
    from denoise.noise import parse_noise
    from pipelines.evaluate import as_configured

    device = distributed.device()
    if reference in METHODS and not (Path(reference) / CARD).exists():
        noise = parse_noise(noise_name or config.noise)
        fields = config.method.fields if config.method.name == reference else {}
        denoiser = untrained_denoiser(reference, fields, config.data.channels, noise, device)
    else:
        denoiser = load_denoiser(_model_folder(config, reference), device)
    return as_configured(denoiser, config.evaluate)


def _model_folder(config: "Config", reference: str) -> Path:
    if not reference.startswith("models:/"):
        return Path(reference)
    from pipelines.registry.versions import model_folder

    return model_folder(tracking_uri(config), reference)
