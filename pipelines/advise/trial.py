"""A quick training by the advised method, on the images that were measured, and one of these before and after."""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from denoise.config import Config, load_config
from denoise.errors import UserError
from pipelines.advise.advice import UNTRAINED, Advice
from pipelines.advise.folder import FolderNoise
from pipelines.advise.page import Panel, panel
from pipelines.console import say
from pipelines.report.figures import as_image

if TYPE_CHECKING:
    from denoise.denoiser import Denoiser

SIDE = 384  # pixels of the middle of an image, which is restored
SHARD_BYTES = 256 << 20


def try_advice(found: FolderNoise, advice: Advice, minutes: float) -> list[Panel]:
    """Train as advised for some minutes, and return the middle of an image before and after; nothing is kept.

    The speed is measured first, so that the schedule of the learning rate ends with the time.

    Raises:
        UserError: there is no method to try, or it cannot be trained on these images.
    """
    from denoise import distributed
    from denoise.denoiser import load_denoiser, untrained_denoiser
    from denoise.noise import parse_noise

    if not advice.method:
        raise UserError(f"there is nothing to try: {advice.why}; leave --try out.")
    if advice.method in UNTRAINED:
        denoiser = untrained_denoiser(advice.method, {}, found.channels, parse_noise("none"), distributed.device())
        return _before_and_after(found, denoiser, advice.method)
    with tempfile.TemporaryDirectory(prefix="denoise-advise-") as work:
        steps = _train(found, advice, minutes, Path(work))
        denoiser = load_denoiser(Path(work) / "model", distributed.device())
        return _before_and_after(found, denoiser, f"{advice.method}, {steps:,} steps")


def _train(found: FolderNoise, advice: Advice, minutes: float, work: Path) -> int:
    """Train into ``work``/model and return the number of steps."""
    from denoise.methods import with_net
    from denoise.sharding.writer import write_shards
    from denoise.training.checkpoint_manager import CheckpointManager, FolderStore
    from denoise.training.loop import train
    from pipelines.datasets.layout import shard_folder
    from pipelines.training.inputs import export_model, open_datasets, provenance, training_inputs
    from pipelines.training.progress import step_progress
    from pipelines.training.speed import SECONDS, images_per_second

    root = work / "data"
    write_shards(shard_folder(root, "train", "mine"), [image.source for image in found.measured], SHARD_BYTES)
    config = with_net(load_config(None, [*advice.keys, f"data.root={root}"]))
    say(f"measuring the speed of {advice.method}, {SECONDS:.0f} s")
    config = _lasting(config, max(1, round(60 * minutes * images_per_second(config) / config.train.batch_size)))
    inputs, store = training_inputs(config), FolderStore(work / "checkpoints")
    with step_progress(advice.method, config.train.steps) as show:
        train(
            config,
            train_set=open_datasets(config, inputs.parts)["train"],
            val_set=None,
            folder=work,
            report=show,
            checkpoints=CheckpointManager(store, 1, say),
            provenance=provenance(inputs),
        )
    export_model(config, store, work / "model")
    return config.train.steps


def _lasting(config: Config, steps: int) -> Config:
    """Return a configuration of so many steps, whose only checkpoint is the last."""
    return replace(config, train=replace(config.train, steps=steps, eval_every=steps, checkpoint_every=steps))


def _before_and_after(found: FolderNoise, denoiser: "Denoiser", how: str) -> list[Panel]:
    from denoise import distributed
    from denoise.tiling import restore_batch

    image = found.measured[0]
    noisy = image.middle(SIDE)
    restored = restore_batch(denoiser, noisy[None].to(distributed.device()))[0].cpu()
    name = image.path.name
    return [panel(f"{name}, noisy", as_image(noisy)), panel(f"restored by {how}", as_image(restored))]
