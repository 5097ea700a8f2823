"""A run that ``--name`` continues: refused where it is not the run of that name, before anything is written.

A name that the command makes itself needs no check: it is a hash of all that is compared here (``identity``).
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoise.config import Config
from denoise.errors import UserError
from pipelines.console import say
from pipelines.tracking.client import existing_run
from pipelines.tracking.runs import RunSpec
from pipelines.training.identity import changed_settings, named_settings
from pipelines.training.inputs import Part, TrainingInputs
from pipelines.training.teacher import TEACHER_TAG

if TYPE_CHECKING:
    from denoise.model_files import ModelCard
    from denoise.training.checkpoint_manager import CheckpointStore

DATA_TAG = "data_digest"  # of the MLflow run of a training


def continue_run(
    config: Config, inputs: TrainingInputs, store: "CheckpointStore", model: Path | None = None
) -> TrainingInputs:
    """Return the inputs of the run that has this name, with what its weights owe to other code or another length.

    Args:
        config: of the run, its net resolved (``with_net``).
        inputs: of the run.
        store: its checkpoints.
        model: where its model is, if there is one.

    Raises:
        UserError: the run of that name has other settings or other training images; the message names them.
    """
    checkpoint = _card_of_newest(store)
    for card in (checkpoint, _card_in(model)):
        if card is not None:
            _refuse_another_run(config, inputs, card)
    return inputs if checkpoint is None else replace(inputs, earlier=_earlier(config, inputs, checkpoint))


def refuse_mlflow_run(config: Config, spec: RunSpec) -> None:
    """Refuse to log into the MLflow run of another training that had this name, with its checkpoints elsewhere.

    Raises:
        UserError: MLflow has a run of that name with other settings or other training images.
    """
    run = None
    with suppress(UserError):  # MLflow does not answer
        run = existing_run(spec.uri, spec.experiment, spec.name)
    if run is None:
        return
    known, new = run.data.params, spec.as_dict()["params"]
    keys = [key for key in named_settings(config) if key in known and known[key] != new[key]]
    changes = [f"{key}: {known[key]}, now {new[key]}" for key in keys]
    if run.data.tags.get(DATA_TAG, spec.tags[DATA_TAG]) != spec.tags[DATA_TAG]:
        changes.append("other training images")
    if run.data.tags.get(TEACHER_TAG) != spec.tags.get(TEACHER_TAG):
        changes.append("another teacher")
    _refuse(spec.name, changes, " in MLflow")


def _card_of_newest(store: "CheckpointStore") -> "ModelCard | None":
    """Return the card of the newest intact checkpoint, which the run will resume from."""
    from denoise.model_files import read_card
    from denoise.training.checkpoint import damage

    for name in reversed(store.names()):
        with store.open(name) as folder:
            if not damage(folder):
                return read_card(folder)
    return None


def _card_in(model: Path | None) -> "ModelCard | None":
    """Return the card of a model that lies where the run's own will be written."""
    from denoise.model_files import read_card

    with suppress(UserError):  # there is none, or a damaged one
        return read_card(model) if model else None
    return None


def _refuse_another_run(config: Config, inputs: TrainingInputs, card: "ModelCard") -> None:
    stored_parts = card.get("provenance", {}).get("data", [])
    changes = [*changed_settings(card["config"], config), *_changed_images(stored_parts, inputs.parts)]
    if card.get("provenance", {}).get("teacher") != inputs.versions.get(TEACHER_TAG):
        changes.append("another teacher")
    _refuse(inputs.name, changes)


def _refuse(name: str, changes: Sequence[str], where: str = "") -> None:
    if changes:
        raise UserError(
            f"the run {name}{where} was begun with other settings ({'; '.join(changes)}): continue it with those, or "
            "give this one another --name."
        )


def _changed_images(stored: Sequence[Mapping[str, Any]], parts: Sequence[Part]) -> list[str]:
    """Return in words how the training images differ, in a list that is empty where they do not."""
    before = {part["digest"]: part["name"] for part in stored if part["split"] == "train"}
    now = {part.digest: part.name for part in parts if part.split == "train"}
    if not before or list(before) == list(now):
        return []
    old, new = (",".join(names.values()) for names in (before, now))
    return [f"data.train: {old}, now {new}" if old != new else f"the images of data.train={old} have changed"]


def _earlier(config: Config, inputs: TrainingInputs, card: "ModelCard") -> tuple[Mapping[str, Any], ...]:
    """Return the earlier parts of a run, each by its code and its train.steps, and say what has changed since."""
    origin, steps = card.get("provenance", {}), card["config"]["train"]["steps"]
    earlier = tuple(origin.get("earlier", ()))
    code = origin.get("code_digest")
    same_code, same_steps = code == inputs.versions["code_digest"], steps == config.train.steps
    if same_code and same_steps:
        return earlier
    if os.environ.get("RANK", "0") == "0":  # torchrun asks on every rank
        if not same_steps:
            say(f"{inputs.name}: begun with train.steps={steps}, it goes on with the schedule of {config.train.steps}")
        if not same_code:
            say(f"{inputs.name}: goes on with other code than that of its last checkpoint; its card names both")
    return (*earlier, {"code_digest": code, "steps": steps})
