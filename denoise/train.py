"""train(): the one loop, for a plain process, torchrun and Ray Train alike."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from denoise import distributed
from denoise.checkpoint import Card, Denoiser, Training, checkpoint_name, load_checkpoint, make_card, save_checkpoint
from denoise.collection import Collection
from denoise.config import Config, to_dict
from denoise.data import Batch as Crops
from denoise.data import Batching, Quarantine, Scenes, as_floats, batches
from denoise.errors import UserError
from denoise.images import Picture, pad, to_pixels, unpad, write_picture
from denoise.methods import Batch, Method, build_method, with_net
from denoise.metrics import psnr, ssim
from denoise.nets import NetMaker, multiple_of
from denoise.noise import Noise, parse_noise
from denoise.optimizers import make_average, make_optimizer
from denoise.order import Order
from denoise.rng import batch_rng
from denoise.scenes import FreshScenes, as_views, open_scenes, trial
from denoise.schedules import Schedule, schedule
from denoise.shards import DamagedError

Metrics = dict[str, float]
Report = Callable[[Metrics, Path | None], None]

WATCHED_PICTURES, WATCHED_SIDE = 8, 256  # validation sees the centres of the first pictures
WATCH_STEP = -1  # keys the validation noise: the same at every step, and never that of a training step


class Objective(nn.Module):
    """The method's loss as one module, so that a rank makes one forward pass through DDP however often the net runs."""

    def __init__(self, net: nn.Module, method: Method) -> None:
        super().__init__()
        self.net, self.method = net, method

    def forward(self, batch: Batch, progress: float) -> Batch:
        """Return the terms of the loss."""
        return self.method.loss(self.net, batch, progress)


def train(
    config: Config,
    pictures: Collection,
    watched: Collection | None,
    folder: Path,
    report: Report,
    resume: Path | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Train ``config.method`` on ``pictures`` until ``config.train.steps`` steps are done.

    Every random choice is keyed by (seed, step, position in the global batch): runs of any world size see the same
    samples and noise, and a run resumed from a checkpoint continues exactly where that was written.

    Args:
        config: what to train and how.
        pictures: the training pictures.
        watched: pictures to validate on while training, or None.
        folder: a local folder of rank 0 for validation pictures and for checkpoints until they are reported.
        report: called on every rank after ``log_every`` steps, at validation, at a checkpoint and at the end, with the
            metrics and the folder of the checkpoint if one was saved (on rank 0, under the same name for all).
        resume: a checkpoint folder to continue from.
        provenance: what the checkpoints should record about where they come from.

    Raises:
        UserError: an unknown name in the configuration, a damaged checkpoint, a loss that is not finite, a full disk.
    """
    config = with_net(config)
    spec, rank, world = config.train, distributed.rank(), distributed.world_size()
    device = distributed.device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    method, noise, rate = check(config)
    layout = torch.channels_last if spec.channels_last else torch.contiguous_format
    half = resolve_precision(spec.precision, device) == "bf16"

    torch.manual_seed(config.seed)  # the initial weights; nothing after this draws from the global generator
    maker = NetMaker(config.net.name, config.data.channels, config.net.fields)
    net = method.make_net(maker).to(device).to(memory_format=layout)  # type: ignore[call-overload]
    training = Training(net, make_optimizer(net.parameters(), spec), make_average(net, spec))
    start, history = load_checkpoint(resume, training) if resume else (0, [])
    card = make_card(to_dict(config), config.data.channels, **(provenance or {}))

    objective = distributed.wrap(Objective(net, method))
    scenes = open_scenes(config, pictures, method, noise)
    quarantine = Quarantine(config.data.quarantine)
    crop = spec.crop * (noise.scale if isinstance(scenes, FreshScenes) else 1)
    samples = read(config, scenes, pictures, crop, quarantine, start, pin=device.type == "cuda")
    sums, counted, clock = _Sums(device), start, time.perf_counter()

    for step in range(start, spec.steps):
        # Make the batch: the method sees the views it needs and no other.
        ours = next(samples)
        crops = {
            name: as_floats(view.to(device, non_blocking=True)).contiguous(memory_format=layout)
            for name, view in ours.views.items()
        }
        rng = batch_rng(config.seed, step, ours.positions.to(device))
        weight = len(ours.positions) * world / spec.batch_size  # DDP averages over ranks, the loss over the batch
        batch = method.make_batch(as_views(crops, method, noise, rng), rng.stream("method"))

        # Step.
        lr = spec.lr * rate(step / spec.steps, spec)
        for group in training.optimizer.param_groups:
            group["lr"] = lr
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=half):
            terms = objective(batch, step / spec.steps)
        (terms["loss"] * weight).backward()
        training.optimizer.step()
        training.optimizer.zero_grad(set_to_none=True)
        if training.average is not None:
            training.average.update_parameters(net)
        sums.add(terms, weight / world)

        # Measure, save and report.
        done = step + 1
        last = done == spec.steps
        evaluating = last or done % spec.eval_every == 0
        saving = last or done % spec.checkpoint_every == 0
        if not (evaluating or saving or done % spec.log_every == 0):
            continue
        metrics = {"step": float(done), "lr": lr, **sums.means(done - counted), **_left_out(quarantine)}
        _check_finite(metrics["loss"], done, spec.lr)
        rate_now = (done - counted) * spec.batch_size / (time.perf_counter() - clock)
        if evaluating and watched is not None and rank == 0:
            denoiser = Denoiser(training.model, method, card, passes=1)
            metrics.update(watch(denoiser, watched, noise, device, folder / "pictures" / f"step-{done:06d}.png"))
        history.append(dict(metrics))  # without times: the same run always leaves the same files
        metrics["images_per_second"] = rate_now
        checkpoint = folder / "checkpoints" / checkpoint_name(done) if saving else None
        if checkpoint and rank == 0:
            save_checkpoint(checkpoint, training, done, history, _with_left_out(card, quarantine))
        report(metrics, checkpoint)
        sums, counted, clock = _Sums(device), done, time.perf_counter()


def read(
    config: Config, scenes: Scenes, pictures: Collection, crop: int, quarantine: Quarantine, start: int, pin: bool
) -> Iterator[Crops]:
    """Return this rank's batches from step ``start`` on, as the configuration says."""
    data, spec = config.data, config.train
    order = Order(config.seed, pictures.counts, pictures.digest, data.streams, data.window)
    batching = Batching(
        config.seed, spec.batch_size, crop, data.channels, spec.augment, data.crops_per_picture, data.threads, pin
    )
    rank, world = distributed.rank(), distributed.world_size()

    def usable(sample: int) -> bool:
        return data.small == "pad" or min(pictures.size(sample)) >= crop

    pictures.keep_decoded(data.cache_mb << 20)
    try:
        expect = None if pictures.here else pictures.expect
        yield from batches(scenes, order, batching, rank, world, start, quarantine, expect, usable)
    finally:
        pictures.close()


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


def watch(denoiser: Denoiser, watched: Collection, noise: Noise, device: torch.device, strip: Path) -> Metrics:
    """Score the centres of the watched pictures, and write noisy | restored | clean of the first to ``strip``.

    Mean PSNR and SSIM of unrounded pictures in one pass, with the same noise at every step; nothing where there are no
    clean pictures to compare with.
    """
    training = denoiser.net.training
    denoiser.net.eval()
    scores: list[tuple[float, float]] = []
    for index in range(min(len(watched), WATCHED_PICTURES)):
        rng = batch_rng(0, WATCH_STEP, torch.tensor([index], device=device))
        seen = trial(watched, index, noise, denoiser.channels, rng, device)
        noisy = _centre(seen.noisy)
        restored = unpad(denoiser(pad(noisy, denoiser.multiple), seen.level, rng), *noisy.shape[-2:])
        shown = [noisy, restored]
        if seen.clean is not None:
            clean = _centre(seen.clean)
            scores.append((psnr(restored[0], clean[0]), ssim(restored[0], clean[0])))
            shown.append(clean)
        if index == 0:
            strip.parent.mkdir(parents=True, exist_ok=True)
            write_picture(strip, Picture(to_pixels(torch.cat(shown, dim=-1)[0])))
    denoiser.net.train(training)
    if not scores:
        return {}
    return {"val_psnr": sum(s[0] for s in scores) / len(scores), "val_ssim": sum(s[1] for s in scores) / len(scores)}


class _Sums:
    """Sums of loss terms since the last report, kept on the device: no step waits for the host."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sums: dict[str, Tensor] = {}

    def add(self, terms: Batch, weight: float) -> None:
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, torch.zeros((), device=self.device)) + value.detach().float() * weight

    def means(self, steps: int) -> Metrics:
        names = sorted(self.sums)
        totals = distributed.total(torch.stack([self.sums[name] for name in names])) / steps
        return dict(zip(names, totals.tolist(), strict=True))


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


def _with_left_out(card: Card, quarantine: Quarantine) -> Card:
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


def _check_finite(loss: float, step: int, lr: float) -> None:
    if not math.isfinite(loss):
        raise UserError(f"the loss is {loss} at step {step}: training has diverged; lower train.lr (it is {lr:g}).")


def _centre(picture: Tensor) -> Tensor:
    height, width = picture.shape[-2:]
    top, left = max(0, height - WATCHED_SIDE) // 2, max(0, width - WATCHED_SIDE) // 2
    return picture[..., top : top + WATCHED_SIDE, left : left + WATCHED_SIDE]
