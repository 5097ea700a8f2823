"""Commands that are printed for the user to run next, complete as they have to be typed."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoise.redaction import without_passwords
from pipelines.cli.common import configuration, tracking_uri

if TYPE_CHECKING:
    from denoise.config import Config

SCORING = ("data.root", "data.url", "data.allow_overlap", "evaluate.protocol", "evaluate.passes", "evaluate.average")
TRACKING = ("tracking.uri", "tracking.experiment")


def to_champion(config: "Config", model: Path, name: str) -> list[str]:
    """Return the commands that score a model on the first test set, register it with its scores, and promote it.

    Args:
        config: where the data and MLflow are, and how models are scored.
        model: the model folder.
        name: folder of the scores, below ``evaluation``.

    Returns:
        Three lines; none where ``data.test`` names no set to score on.
    """
    from denoise.denoiser import read_card
    from pipelines.registry.rows import NAME_PREFIX

    if not config.data.test:
        return []
    test, out = config.data.test[0], Path("evaluation") / name
    registered = f"{NAME_PREFIX}{read_card(model)['noise']}"
    tracking = settings(config, TRACKING)
    return [
        line("evaluate", model, "--data", test, "--out", out, *settings(config, SCORING)),
        line("models", "register", model, "--scores", out / test / config.evaluate.protocol, *tracking),
        line("models", "promote", registered, *tracking),
    ]


def after_training(config: "Config", model: Path) -> list[str]:
    """Return the commands that restore an image with a trained model, and that score it and register it.

    Where ``data.test`` names no set to score on, it is registered without a score.
    """
    from denoise.denoiser import read_card

    name = str(read_card(model)["provenance"]["run"])
    unscored = [line("models", "register", model, *settings(config, TRACKING))]
    restore = line("restore", "noisy.png", "-o", "restored.png", "--model", model)
    return [restore, *(to_champion(config, model, name)[:2] or unscored)]


def line(*words: object) -> str:
    """Return a denoise command as it has to be typed in a shell, but for the passwords of addresses."""
    return shlex.join(["denoise", *(without_passwords(str(word)) for word in words)])


def settings(config: "Config", keys: tuple[str, ...]) -> list[str]:
    """Return ``-S KEY=VALUE`` for each key that has another value in ``config`` than params.yaml gives it here."""
    from denoise.config import flatten, to_dict

    here, wanted = (flatten(to_dict(_absolute(tree))) for tree in (configuration(None), config))
    return [word for key in keys if here[key] != wanted[key] for word in ("-S", f"{key}={_text(wanted[key])}")]


def _absolute(config: "Config") -> "Config":
    """Return a configuration whose addresses do not depend on how they were written."""
    data = replace(config.data, root=str(Path(config.data.root).absolute()))
    return replace(config, data=data, tracking=replace(config.tracking, uri=tracking_uri(config)))


def _text(value: Any) -> str:
    """Return a value as ``KEY=VALUE`` has it."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "null" if value is None else str(value)
