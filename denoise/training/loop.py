"""train(): the one training loop, for a plain process, torchrun and Ray Train alike."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from denoise import distributed
from denoise.config import Config, recorded
from denoise.data.dataset import ShardedDataset
from denoise.data.loader import read_batches
from denoise.data.quarantine import Quarantine
from denoise.denoiser import Denoiser, ModelCard, make_card
from denoise.methods import with_net
from denoise.training.checkpoint import RunProgress, TrainState, snapshot
from denoise.training.checkpoint_manager import CheckpointManager
from denoise.training.crop_psnr import training_psnr
from denoise.training.fault_injection import NO_FAULTS, FaultInjector
from denoise.training.history import Metrics, Throughput, TrainingHistory
from denoise.training.profiler import profiled
from denoise.training.setup import build_components, init_train_state, make_validator, prepare_device, resume
from denoise.training.step import TrainStep
from denoise.training.teacher import load_teacher

Report = Callable[[Metrics], bool | None]


def train(
    config: Config,
    *,
    train_set: ShardedDataset,
    val_set: ShardedDataset | None,  # images to validate on; None: no validation
    folder: Path,  # where rank 0 writes validation images
    report: Report,  # called on every rank with the metrics; where all return true, a checkpoint is saved at once
    checkpoints: CheckpointManager,  # what to resume from, and where to save
    provenance: Mapping[str, Any] | None = None,  # what checkpoints record about where they come from
    training_images: bytes = b"",  # the file that says in checkpoints which images were trained on; empty: none
    stop_requested: Callable[[], bool] = lambda: False,  # asked on every rank before every step
    faults: FaultInjector = NO_FAULTS,
    profile: Path | None = None,  # folder for a profile of some steps
) -> int:
    """Train until ``config.train.steps`` steps are done or a stop is requested; return the number of steps done.

    Every random choice is keyed by (seed, step, position in the global batch): runs of any world size see the same
    samples and noise, and a resumed run continues exactly where its checkpoint was saved.

    Raises:
        UserError: an invalid configuration, damaged data, a loss that is not finite, a full disk.
    """
    # Set up what the configuration names, and resume from the newest intact checkpoint.
    config, spec, rank = with_net(config), config.train, distributed.rank()
    device = prepare_device(spec.deterministic)
    method, noise, schedule = build_components(config)
    train_state = init_train_state(config, method, device)
    teacher = load_teacher(config, device, provenance or {})
    progress = resume(train_state, checkpoints)

    # Set up the step, its data, and what records it.
    train_step = TrainStep(
        config, train_state, method, noise, teacher=teacher, faults=faults, on_message=checkpoints.on_message
    )
    quarantine = Quarantine(config.data.quarantine)
    batches = read_batches(config, train_set, method, noise, quarantine=quarantine, start=progress.step)
    validator = make_validator(config, val_set, method, noise, device=device, folder=folder / "images", teacher=teacher)
    history, throughput = TrainingHistory(progress, device), Throughput()
    stop = distributed.Agreement(config.ray.timeout)
    taught = {"teacher": teacher.denoiser.digest} if teacher else {}
    card = make_card(recorded(config), config.data.channels, train_set.value_range, **{**(provenance or {}), **taught})
    save = partial(save_checkpoint, checkpoints, train_state=train_state, card=card, quarantine=quarantine)
    save = partial(save, training_images=training_images)

    steps_done = progress.step
    for step in profiled(range(progress.step, spec.steps), profile if rank == 0 else None):
        # Stop once any rank was asked to: all ranks agree on the same step.
        if stop.reached(stop_requested()):
            if step > progress.step:
                save(history.progress(step))
            break

        # Take one optimizer step on the next batch.
        faults.before_step(step)
        batch, lr = next(batches), spec.lr * schedule(step / spec.steps, spec)
        history.record_step(step, batch, train_step(step, batch, lr))
        steps_done = step + 1

        # Every so often: validate, save a checkpoint, report.
        validating, saving = (_is_due(steps_done, n, spec.steps) for n in (spec.eval_every, spec.checkpoint_every))
        if not (validating or saving or _is_due(steps_done, spec.log_every, spec.steps)):
            continue
        metrics = {"step": float(steps_done), "lr": lr, **history.means(spec, train_set.name), **quarantine.metrics()}
        if validating and validator:
            denoiser = Denoiser(train_state.model, method, card, passes=1, precision=train_step.precision)
            metrics |= validator.scores(denoiser, steps_done)  # each rank has its share of the images
            metrics |= training_psnr(denoiser, batch, noise, config, step) if spec.train_psnr else {}
        history.add_row(metrics)  # without times, so that the same run always leaves the same files
        if saving:
            save(history.progress(steps_done))
        speed = throughput.images_per_second(steps_done - progress.step, spec.batch_size)
        if report({**metrics, "images_per_second": speed}) and not saving:
            save(history.progress(steps_done))
    checkpoints.wait()
    return steps_done


def save_checkpoint(
    checkpoints: CheckpointManager,
    progress: RunProgress,
    *,
    train_state: TrainState,
    card: ModelCard,
    quarantine: Quarantine,
    training_images: bytes,
) -> None:
    """Save a checkpoint on rank 0; its card also names the samples that were left out."""
    if distributed.rank() == 0:
        state = snapshot(train_state, progress, quarantine.add_to_card(card), training_images)
        checkpoints.save(state, progress.step, progress.history)


def _is_due(steps_done: int, every: int, steps: int) -> bool:
    """Say whether to do now what is done every ``every`` steps and at the end."""
    return steps_done % every == 0 or steps_done == steps
