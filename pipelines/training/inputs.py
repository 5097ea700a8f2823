"""Inputs and outputs of a training run, wherever it runs: its shards, its versions, the model it leaves."""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoise.config import Config
from denoise.errors import UserError
from denoise.files import refuse_foreign, write_folder
from pipelines.console import say
from pipelines.datasets.layout import data_place, open_set, open_sets, results_cache, with_place
from pipelines.training.identity import code_digest, run_name
from pipelines.training.teacher import TEACHER_TAG, teacher_digest

if TYPE_CHECKING:
    import numpy as np

    from denoise.data.dataset import ShardedDataset
    from denoise.data.shards import Shards
    from denoise.training.checkpoint_manager import CheckpointStore

PROFILE = "profile"  # folder of a run, below runs/NAME


@dataclass(frozen=True)
class Part:
    """One set of shards that a run reads."""

    name: str  # SET or SET/SPLIT
    split: str  # what it is read for: train or val; its split, too, where the name says no other
    digest: str
    place: str  # the absolute data.url that the shards are read from, or the absolute data.root


@dataclass(frozen=True)
class TrainingInputs:
    """A run's name, the shards it reads, and the versions of code and data it records."""

    name: str
    parts: Sequence[Part]
    versions: Mapping[str, str]
    earlier: Sequence[Mapping[str, Any]] = ()  # parts of a named run with other code or train.steps (``named_run``)

    def training_images(self, config: Config) -> bytes:
        """Return the file by which a model says which images it was trained on; empty where they are too many."""
        from denoise.sharding.leakage import training_images

        train = open_datasets(config, self.parts)["train"].parts
        images = training_images(train, results_cache())
        if not images:
            say(f"{self.name}: more training images than a model can name: an evaluation will compare whole sets only")
        return images

    def example(self, config: Config) -> "np.ndarray[Any, Any]":
        """Return a small noisy batch (1, C, 64, 64) of the first training image, to document the model's input."""
        import torch

        from denoise.data.crops import random_crop
        from denoise.data.samples import evaluation_pair
        from denoise.noise import parse_noise
        from denoise.rng import batch_rng

        images = open_datasets(config, self.parts)["train"]
        key = batch_rng(config.seed, 0, torch.tensor([0]))
        noisy = evaluation_pair(images, 0, parse_noise(config.noise), config.data.channels, key).noisy[0]
        return random_crop(noisy, 64, (0.5, 0.5))[None].numpy()


def training_inputs(config: Config, name: str | None = None) -> TrainingInputs:
    """Open the shards that ``config`` names, refuse training images that are test images, and name the run.

    Raises:
        UserError: shards that are missing or damaged, or images shared with a test set.
    """
    from denoise.data.dataset import ShardedDataset
    from denoise.sharding.leakage import refuse_overlap
    from denoise.training.setup import build_components

    build_components(config)  # before a cluster is started
    train = open_sets(config, "train")
    refuse_overlap(train, open_sets(config, "test"), config.data.allow_overlap, results_cache())
    _refuse_images_of_teacher(config)
    place = data_place(config)
    parts = [
        Part(set_name, split, shards.digest, place)
        for split, sets in (("train", train), ("val", open_sets(config, "val")))
        for set_name, shards in sets
    ]
    dataset = ShardedDataset([shards for _, shards in train])
    dataset.require_one_range()
    digest = dataset.digest
    teacher = teacher_digest(config)
    taught = {TEACHER_TAG: teacher} if teacher else {}
    known_versions = {"data_digest": digest, **taught, **versions(config)}
    return TrainingInputs(name or run_name(config, digest), parts, known_versions)


def _refuse_images_of_teacher(config: Config) -> None:
    """Refuse test sets with images that the teacher was trained on: what it knows of them, a student learns."""
    from denoise.model_files import TRAINING_IMAGES
    from denoise.sharding.image_set import read_image_set
    from denoise.sharding.leakage import refuse_trained_on

    if config.train.teacher is not None and (file := Path(config.train.teacher) / TRAINING_IMAGES).is_file():
        refuse_trained_on(read_image_set(file), open_sets(config, "test"), config.data.allow_overlap)


def open_datasets(config: Config, parts: Sequence[Part]) -> "dict[str, ShardedDataset]":
    """Open the parts of a run, joined by what they are read for, and check that they are those the driver opened.

    The driver has looked at their files, so not every worker does: each is checked when it is first used.

    Raises:
        UserError: shards are missing, damaged, or not those the run was started on.
    """
    from denoise.data.dataset import ShardedDataset

    splits: dict[str, list[Shards]] = {}
    for part in parts:
        shards = open_set(with_place(config, part.place), part.split, part.name, check=False)
        if shards.digest != part.digest:
            raise UserError(f"the shards at {shards.name} are not those this run was started on; shard them again.")
        splits.setdefault(part.split, []).append(shards)
    datasets = {split: ShardedDataset(sets) for split, sets in splits.items()}
    trained_in = datasets["train"].value_range if "train" in datasets else None
    return {
        split: dataset if split == "train" else ShardedDataset(dataset.parts, trained_in)
        for split, dataset in datasets.items()
    }


def versions(config: Config) -> dict[str, str]:
    """Return what identifies the code: git's commit, whether files differ from it, and the digest of the core."""
    commit, edited = git_version()
    git = {"mlflow.source.git.commit": commit, "git_dirty": str(edited).lower()} if commit else {}
    return {**git, "code_digest": code_digest(config)}


def git_version() -> tuple[str, bool]:
    """Return git's commit (empty outside of a repository), and whether files differ from it."""
    return _git("rev-parse", "HEAD"), bool(_git("status", "--porcelain", "--untracked-files=no"))


def provenance(inputs: TrainingInputs) -> dict[str, Any]:
    """Return what a checkpoint records about where it comes from."""
    return {
        "run": inputs.name,
        "code_digest": inputs.versions["code_digest"],
        "data": [{"name": part.name, "split": part.split, "digest": part.digest} for part in inputs.parts],
        **({"teacher": inputs.versions[TEACHER_TAG]} if TEACHER_TAG in inputs.versions else {}),
        **({"earlier": list(inputs.earlier)} if inputs.earlier else {}),
    }


def require_replaceable(folder: Path) -> None:
    """Refuse a place for a model where something else is, as ``refuse_foreign`` does."""
    from denoise.model_files import MODEL_FILES, OPTIONAL_FILES
    from denoise.training.checkpoint import HISTORY

    refuse_foreign(folder, {*MODEL_FILES, *OPTIONAL_FILES, HISTORY}, "a model")


def export_model(config: Config, store: "CheckpointStore", folder: Path) -> Mapping[str, float]:
    """Copy the model out of the checkpoint that ``train.model`` chooses and return its metrics.

    Raises:
        UserError: there is no checkpoint, its weights are not finite, or the folder holds something else.
    """
    from denoise.denoiser import load_denoiser
    from denoise.model_files import model_files
    from denoise.training.checkpoint import HISTORY, read_history
    from denoise.training.checkpoint_manager import best_name

    require_replaceable(folder)
    names = store.names()
    if not names:
        raise UserError("training ended without a checkpoint; run the same command again.")
    with store.open(names[-1]) as last:
        history = read_history(last)
    with store.open(best_name(names, history) if config.train.model == "best" else names[-1]) as chosen:
        load_denoiser(chosen)

        def write(work: Path) -> None:
            for file in (*model_files(chosen), chosen / HISTORY):
                shutil.copyfile(file, work / file.name)

        write_folder(folder, write)
    return dict(read_history(folder)[-1])


def _git(*arguments: str) -> str:
    """Return what git prints, the empty string where there is no repository."""
    try:
        process = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return process.stdout.strip() if process.returncode == 0 else ""
