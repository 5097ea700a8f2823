"""train(): the one loop, for a plain process, torchrun and Ray Train alike."""

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from denoise import distributed
from denoise.config import Config, to_dict
from denoise.data.dataset import ShardedDataset
from denoise.data.loader import Batching, Quarantine, batches
from denoise.data.loader import CropBatch as Crops
from denoise.data.sampler import GlobalSampler
from denoise.data.samples import FreshNoise, SampleSource, open_samples
from denoise.data.shards import DamagedError
from denoise.denoiser import Denoiser, ModelCard, make_card
from denoise.errors import UserError
from denoise.methods import Method, build_method, with_net
from denoise.nets import NetMaker, multiple_of
from denoise.noise import Noise, parse_noise
from denoise.training.checkpoint import RunProgress, TrainState, load_checkpoint, snapshot
from denoise.training.checkpoint_manager import CheckpointManager
from denoise.training.fault_injection import FaultInjector
from denoise.training.history import Clock, Metrics, TrainingHistory
from denoise.training.malloc import keep_freed_memory
from denoise.training.optimizers import make_average, make_optimizer
from denoise.training.profiler import profiled
from denoise.training.schedules import Schedule, schedule
from denoise.training.step import TrainStep
from denoise.training.validation import Validator

Report = Callable[[Metrics], bool | None]


def train(
    config: Config,
    images: ShardedDataset,
    watched: ShardedDataset | None,
    folder: Path,
    report: Report,
    checkpoints: CheckpointManager,
    provenance: Mapping[str, Any] | None = None,
    leave: Callable[[], bool] = lambda: False,
    faults: FaultInjector | None = None,
    profile: Path | None = None,
) -> int:
    """Train ``config.method`` on ``images`` until ``config.train.steps`` steps are done.

    Every random choice is keyed by (seed, step, position in the global batch): runs of any world size see the same
    samples and noise, and a run resumed from a checkpoint continues exactly where that was written.

    Args:
        config: what to train and how.
        images: the training images.
        watched: images to validate on while training, or None.
        folder: a local folder of rank 0 for validation images.
        report: called on every rank after ``log_every`` steps, at validation, at a checkpoint and at the end, with the
            metrics; where it is true, on every rank, a checkpoint is saved at once.
        checkpoints: what to continue from, and where to save.
        provenance: what the checkpoints should record about where they come from.
        leave: asked on every rank before every step; once it is true on one, all save a checkpoint and return.
        faults: what goes wrong on purpose.
        profile: a folder for a profile of some steps.

    Returns:
        How many steps are done.

    Raises:
        UserError: an unknown name in the configuration, a loss that is not finite, a full disk.
    """
    config, faults = with_net(config), faults or FaultInjector()
    spec, rank = config.train, distributed.rank()
    device = _prepare_device(spec.deterministic)
    method, noise, rate = check(config)
    half = resolve_precision(spec.precision, device) == "bf16"

    training, done = _begin(config, method, device, checkpoints)
    card = make_card(to_dict(config), config.data.channels, **(provenance or {}))

    step_on = TrainStep(config, training, method, noise, half, faults)
    source = open_samples(config, images, method, noise)
    quarantine = Quarantine(config.data.quarantine)
    crop = spec.crop * (noise.scale if isinstance(source, FreshNoise) else 1)
    shares = read(config, source, images, crop, quarantine, done.step, pin=device.type == "cuda")
    watch = _watch(config, watched, method, noise, crop, device, folder)
    books = TrainingHistory(done, device)
    agreement, clock = distributed.Agreement(device), Clock()

    def save(finished: int) -> None:
        """Save a checkpoint, which every rank helps to sum up."""
        now = books.done(finished)
        if rank == 0:
            held = snapshot(training, now, _with_left_out(card, quarantine))
            checkpoints.save(held, finished, now.history)

    for step in profiled(range(done.step, spec.steps), profile if rank == 0 else None):
        if agreement.reached(leave()):
            if step > done.step:
                save(step)
            break
        faults.before_step(step)
        ours = next(shares)
        lr = spec.lr * rate(step / spec.steps, spec)
        books.add(step, ours, step_on(step, ours, lr))

        finished = step + 1
        last = finished == spec.steps
        evaluating = last or finished % spec.eval_every == 0
        saving = last or finished % spec.checkpoint_every == 0
        if not (evaluating or saving or finished % spec.log_every == 0):
            continue
        metrics = {"step": float(finished), "lr": lr, **books.means(spec, images.name), **_left_out(quarantine)}
        if evaluating and watch and rank == 0:
            metrics.update(watch.figures(Denoiser(training.model, method, card, passes=1), finished))
        books.close(metrics)  # without times: the same run always leaves the same files
        if saving:
            save(finished)
        urgent = report({**metrics, "images_per_second": clock.rate(finished - done.step, spec.batch_size)})
        if urgent and not saving:
            save(finished)
    else:
        step = spec.steps
    checkpoints.wait()
    return step


def _begin(
    config: Config, method: Method, device: torch.device, checkpoints: CheckpointManager
) -> tuple[TrainState, RunProgress]:
    """Return the state to go on from: that of the newest checkpoint, or of a seed."""
    spec = config.train
    torch.manual_seed(config.seed)  # the initial weights; nothing after this draws from the global generator
    maker = NetMaker(config.net.name, config.data.channels, config.net.fields)
    layout = torch.channels_last if spec.channels_last else torch.contiguous_format
    net = method.make_net(maker).to(device).to(memory_format=layout)  # type: ignore[call-overload]
    training = TrainState(net, make_optimizer(net.parameters(), spec), make_average(net, spec))
    with checkpoints.newest() as resume:
        return training, load_checkpoint(resume, training) if resume else RunProgress()


def _watch(
    config: Config,
    watched: ShardedDataset | None,
    method: Method,
    noise: Noise,
    crop: int,
    device: torch.device,
    folder: Path,
) -> Validator | None:
    if watched is None:
        return None
    unseen = open_samples(config, watched, method, noise) if config.train.val_loss else None
    return Validator(watched, unseen, noise, crop, device, folder / "images")


def _prepare_device(deterministic: bool) -> torch.device:
    device = distributed.device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = not deterministic  # crops are all of one size
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS: the same bits on several streams
        torch.use_deterministic_algorithms(deterministic)
    else:
        keep_freed_memory()
    return device


def read(
    config: Config,
    source: SampleSource,
    images: ShardedDataset,
    crop: int,
    quarantine: Quarantine,
    start: int,
    pin: bool,
) -> Iterator[Crops]:
    """Return this rank's batches from step ``start`` on, as the configuration says."""
    data, spec = config.data, config.train
    order = GlobalSampler(config.seed, images.counts, images.digest, data.streams, data.window)
    batching = Batching(
        config.seed, spec.batch_size, crop, data.channels, spec.augment, data.crops_per_image, data.threads, pin
    )
    rank, world = distributed.rank(), distributed.world_size()

    def usable(sample: int) -> bool:
        return data.small == "pad" or min(images.size(sample)) >= crop

    images.keep_decoded(data.cache_mb << 20)
    try:
        expect = None if images.here else images.expect
        yield from batches(source, order, batching, rank, world, start, quarantine, expect, usable)
    finally:
        images.close()


def check(config: Config) -> tuple[Method, Noise, Schedule]:
    """Return what a configuration names; a name, field or combination that cannot be trained is a UserError."""
    noise, rate = parse_noise(config.noise), schedule(config.train.schedule)
    method = build_method(config.method.name, config.method.fields, noise)
    if not method.trained:
        use = f"denoise restore noisy.png -o restored.png --model {config.method.name}"
        raise UserError(f"method={config.method.name} needs no training; use it as it is: {use}.")
    choice = with_net(config).net
    with torch.device("meta"):
        net = method.make_net(NetMaker(choice.name, config.data.channels, choice.fields))
    _check_crop(config.train.crop, net)
    return method, noise, rate


def resolve_precision(wanted: str, device: torch.device) -> str:
    """Return bf16 or fp32; "auto" is bf16 where the hardware computes in it."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def _left_out(quarantine: Quarantine) -> Metrics:
    """Return how many samples all ranks together have left out; above the limit every rank ends here, at one step.

    Raises:
        DamagedError: more than the configuration allows, or the first one where it allows none.
    """
    if not quarantine.limit:
        return {}
    quarantine.found = distributed.union(quarantine.found)
    if len(quarantine.found) > quarantine.limit:
        sample, reason = min(quarantine.found.items())
        raise DamagedError(
            f"{len(quarantine.found)} samples are damaged, more than the {quarantine.limit} of data.quarantine; "
            f"sample {sample}: {reason}"
        )
    return {"quarantined": float(len(quarantine.found))}


def _with_left_out(card: ModelCard, quarantine: Quarantine) -> ModelCard:
    """Return the card of a model, which says which samples its training left out, and why."""
    if not quarantine.found:
        return card
    listed = [{"sample": sample, "reason": reason} for sample, reason in sorted(quarantine.found.items())]
    return {**card, "provenance": {**card["provenance"], "left_out": listed}}


def _check_crop(crop: int, net: nn.Module) -> None:
    multiple = multiple_of(net)
    if crop % multiple:
        nearest = max(multiple, round(crop / multiple) * multiple)
        raise UserError(
            f"train.crop={crop} does not suit this net, which needs multiples of {multiple}; use {nearest}."
        )
