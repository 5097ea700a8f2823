"""Sets up a training run: the device, what the configuration names, and the state to train on from."""

import os
from pathlib import Path

import torch
from torch import nn

from denoise import distributed
from denoise.config import Config
from denoise.data.dataset import ShardedDataset
from denoise.data.samples import crop_side, open_samples
from denoise.errors import UserError
from denoise.methods import Method, build_method, meta_net, smallest_crop, with_net
from denoise.nets import NetMaker, multiple_of
from denoise.noise import Noise, parse_noise
from denoise.training.checkpoint import RunProgress, TrainState, load_checkpoint
from denoise.training.checkpoint_manager import CheckpointManager
from denoise.training.malloc import keep_freed_memory
from denoise.training.optimizers import make_average, make_optimizer
from denoise.training.schedules import Schedule, schedule
from denoise.training.teacher import Teacher, told_of_teacher
from denoise.training.validation import Validator


def build_components(config: Config) -> tuple[Method, Noise, Schedule]:
    """Return the method, the noise model and the learning-rate schedule that a configuration names.

    Raises:
        UserError: an unknown name or field, or a combination that cannot be trained.
    """
    noise, rate = parse_noise(config.noise), schedule(config.train.schedule)
    method = build_method(config.method.name, config.method.fields, noise)
    if not method.trained:
        use = f"denoise restore noisy.png -o restored.png --model {config.method.name}"
        raise UserError(f"method={config.method.name} needs no training; use it as it is: {use}.")
    method = told_of_teacher(method, config)
    settled = with_net(config)
    _check_crop(settled.train.crop_pixels, meta_net(settled, method))
    return method, noise, rate


def prepare_device(deterministic: bool) -> torch.device:
    """Return the device of this rank, with torch's global switches set for training on it."""
    device = distributed.device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = not deterministic  # all crops have the same size
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS: the same bits on several streams
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # only finds errors
    else:
        keep_freed_memory()
    return device


def init_train_state(config: Config, method: Method, device: torch.device) -> TrainState:
    """Return a net with initial weights drawn from ``config.seed``, its optimizer, and its running average."""
    spec = config.train
    torch.manual_seed(config.seed)  # the initial weights; nothing after this draws from the global generator
    layout = torch.channels_last if spec.channels_last else torch.contiguous_format
    net = _make_net(config, method).to(device).to(memory_format=layout)  # type: ignore[call-overload]
    return TrainState(net, make_optimizer(net.parameters(), spec), make_average(net, spec))


def resume(train_state: TrainState, checkpoints: CheckpointManager) -> RunProgress:
    """Load the newest intact checkpoint into ``train_state``, if there is one, and return how far the run has come."""
    with checkpoints.newest() as folder:
        return load_checkpoint(folder, train_state) if folder else RunProgress()


def make_validator(
    config: Config,
    val_set: ShardedDataset | None,
    method: Method,
    noise: Noise,
    *,
    device: torch.device,
    folder: Path,
    teacher: Teacher | None = None,
) -> Validator | None:
    """Return what validates on ``val_set`` and writes its images into ``folder``; None without a set."""
    if val_set is None:
        return None
    samples = open_samples(config, val_set, method, noise) if config.train.val_loss else None
    crop = config.train.crop_pixels
    crop = crop_side(samples, crop, noise) if samples is not None else crop
    return Validator(val_set, samples, noise, crop, config.train.val_images, device, folder, teacher)


def _make_net(config: Config, method: Method) -> nn.Module:
    return method.make_net(NetMaker(config.net.name, config.data.channels, config.net.fields))


def _check_crop(crop: int, net: nn.Module) -> None:
    """Check that the sides of crops suit a net.

    Raises:
        UserError: some of its weights would never learn, or its pooling does not divide them.
    """
    multiple, least = multiple_of(net), smallest_crop(net)
    if crop < least and least > multiple:
        raise UserError(
            f"train.crop={crop} is too small for this net with a blind spot: below {least} pixels some of its weights "
            f"meet nothing but padding and never learn; use {least} or more, or auto."
        )
    if crop % multiple:
        nearest = max(multiple, round(crop / multiple) * multiple)
        raise UserError(
            f"train.crop={crop} does not suit this net, which needs multiples of {multiple}; use {nearest}."
        )
