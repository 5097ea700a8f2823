"""A training step: what it costs the host, and that on static tensors, as a CUDA graph takes it, it is the same."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from denoise.config import load_config
from denoise.data.loader import CropBatch
from denoise.data.samples import IMAGE
from denoise.methods import build_method, with_net
from denoise.noise import parse_noise
from denoise.training.checkpoint import RunProgress, snapshot
from denoise.training.cuda_graph import StaticStep, obstacle
from denoise.training.fault_injection import FaultInjector, parse_fault
from denoise.training.setup import init_train_state
from denoise.training.step import TrainStep, _compiles

pytestmark = pytest.mark.smoke

_SPEC = importlib.util.spec_from_file_location("benchmark_step", Path(__file__).parents[3] / "benchmarks" / "step.py")
benchmark = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(benchmark)

# The most operations that a step may take, a little above what it takes.
BOUNDS = {
    "n2c": 265,
    "n2n": 315,
    "ssdn": 570,
    "r2r": 290,
    "gr2r": 455,
    "noisier2noise": 295,
    "sure": 375,
    "n2v": 345,
    "n2s": 320,
    "n2same": 515,
    "nb2nb": 395,
    "b2u": 390,
    "atbsn": 390,
    "apbsn": 500,
    "distil": 290,
    "n2n, poisson30": 555,
    "n2n, text0.25": 290,
    "n2n, ema": 315,
}
CPU = torch.device("cpu")
LR = 2**-10  # a tensor holds it exactly


@pytest.mark.parametrize("case", benchmark.CASES)
def test_a_step_takes_few_operations_and_waits_for_nothing(case):
    overrides = benchmark.CASES[case]
    counts = benchmark.operations_of_step(overrides)
    assert set(counts) == set(benchmark.PHASES)
    assert counts.total() <= BOUNDS[case], counts
    assert benchmark.waits_of_step(overrides) == []


def test_the_counter_sees_operations_and_waits():
    operations, literals = benchmark.Operations(), benchmark.Literals()
    with operations, literals:
        there = torch.arange(4).to("meta") + 1
        there.view(2, 2)
        torch.tensor([1], device="meta")
    assert operations.counts.total() >= 3
    assert len(operations.blocking) == 1
    assert len(literals.blocking) == 1
    with pytest.raises((RuntimeError, NotImplementedError)):
        there.sum().item()


def make(*overrides: str, **options: object) -> TrainStep:
    config = with_net(load_config(None, ["train.crop=32", "train.batch_size=2", "train.steps=6", *overrides]))
    noise = parse_noise(config.noise)
    method = build_method(config.method.name, config.method.fields, noise)
    return TrainStep(config, init_train_state(config, method, CPU), method, noise, **options)


def batch(step: int, dtype: torch.dtype = torch.uint8) -> CropBatch:
    generator = torch.Generator().manual_seed(step)
    image = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8, generator=generator).to(dtype)
    return CropBatch(torch.arange(2), {IMAGE: image.contiguous(memory_format=torch.channels_last)}, [0, 1])


def train(train_step: TrainStep, take: Callable[[int, CropBatch], dict[str, torch.Tensor]]) -> list[torch.Tensor]:
    """Return the losses of four steps, and all weights after them."""
    losses = [take(step, batch(step))["loss"].clone() for step in range(4)]
    state = train_step.train_state
    return [*losses, *state.net.state_dict().values(), *state.model.state_dict().values()]


def static_step(train_step: TrainStep) -> StaticStep:
    optimizer = train_step.train_state.optimizer
    return StaticStep(train_step.take, train_step.config, optimizer, batch(0), CPU)


def of_static_step(train_step: TrainStep) -> list[torch.Tensor]:
    static = static_step(train_step)
    for group in train_step.train_state.optimizer.param_groups:
        group["lr"].fill_(LR)
    return train(train_step, static)


SMALL = "net=cnn5"


@pytest.mark.parametrize(
    "overrides",
    [
        ("method=n2n", SMALL, "train.ema=0.9"),
        ("method=n2n", SMALL, "noise=poisson5_30", "train.optimizer=sgd"),
        ("method=n2v", SMALL, "train.optimizer=adamw"),
        ("method=nb2nb", SMALL),
        ("method=r2r",),
    ],
    ids=" ".join,
)
def test_a_step_on_static_tensors_is_the_same_to_the_last_bit(overrides):
    eager, static = make(*overrides), make(*overrides)
    expected = train(eager, lambda step, crops: eager(step, crops, LR))
    assert all(map(torch.equal, of_static_step(static), expected))


@pytest.mark.parametrize("overrides", [("method=b2u", SMALL), ("method=n2n", SMALL, "method.loss_name=l0")])
def test_a_loss_that_changes_with_the_progress_is_the_same_but_for_rounding(overrides):
    eager, static = make(*overrides, "train.precision=fp32"), make(*overrides, "train.precision=fp32")
    expected = train(eager, lambda step, crops: eager(step, crops, LR))
    for values, others in zip(of_static_step(static), expected, strict=True):
        torch.testing.assert_close(values, others, rtol=1e-5, atol=1e-6)


def test_a_static_step_draws_by_its_own_keys_each_time():
    static = static_step(make("method=n2n", SMALL))  # whose learning rate is 0
    losses = set()
    for step in range(3):
        losses.add(static(step, batch(0))["loss"].item())
    assert len(losses) == 3
    assert static.keys.paths == [("noisy", "level"), ("noisy", "noise"), ("noisy2", "level"), ("noisy2", "noise")]


def test_crops_of_another_form_do_not_fit():
    static = static_step(make("method=n2n", SMALL))
    assert static.fits(batch(1))
    assert not static.fits(batch(1, torch.float32))


def test_a_checkpoint_is_the_same_with_a_learning_rate_in_a_tensor():
    eager, static = make("method=n2n", SMALL), make("method=n2n", SMALL)
    train(eager, lambda step, crops: eager(step, crops, LR))
    of_static_step(static)
    plain, other = (snapshot(each.train_state, RunProgress(4), {}) for each in (eager, static))
    assert plain.contents == other.contents
    for file, tensors in plain.tensors.items():
        assert all(torch.equal(value, other.tensors[file][name]) for name, value in tensors.items())


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("noise=text0.25", "noise=text0.25 is drawn on the host"),
        ("train.fused=false", "train.fused=false"),
        ("train.micro_batch=1", "train.micro_batch is set"),
        ("train.oom=halve", "train.oom=halve"),
        ("train.skip_nonfinite=2", "train.skip_nonfinite is set"),
        ("train.teacher=models/a", "train.teacher is set"),
        ("train.micro_batch=4", None),
        ("train.ema=0.9", None),
    ],
)
def test_what_keeps_a_step_from_becoming_a_graph(override, reason):
    config = load_config(None, [override])
    assert obstacle(config, parse_noise(config.noise), torch.device("cuda")) == reason


def test_without_a_gpu_one_sentence_says_that_there_is_no_graph():
    said: list[str] = []
    train_step = make("method=n2n", SMALL, "train.cuda_graphs=true", on_message=said.append)
    train(train_step, lambda step, crops: train_step(step, crops, LR))
    assert said == ["warning: train.cuda_graphs is without effect here (there is no GPU); set it to false"]


def test_injected_faults_are_not_replayed():
    faults = FaultInjector([parse_fault("nan:step=1")])
    train_step = make("method=n2n", SMALL, "train.cuda_graphs=true", faults=faults)
    assert not train_step.use_graph
    losses = [train_step(step, batch(step), LR)["loss"].item() for step in range(2)]
    assert losses[0] == losses[0]
    assert losses[1] != losses[1]


def test_auto_compiles_ssdn_on_a_gpu_that_has_the_tools(monkeypatch):
    ssdn, n2n = (build_method(name, {}, parse_noise("gauss25")) for name in ("ssdn", "n2n"))
    cuda = torch.device("cuda")
    assert not _compiles("auto", ssdn, CPU)
    assert _compiles("yes", n2n, CPU)
    assert not _compiles("no", ssdn, cuda)
    monkeypatch.setattr("denoise.training.step.find_spec", lambda name: object())
    monkeypatch.setattr("denoise.training.step.shutil.which", lambda name: "/usr/bin/gcc")
    assert _compiles("auto", ssdn, cuda)
    assert not _compiles("auto", n2n, cuda)
    monkeypatch.setattr("denoise.training.step.shutil.which", lambda name: None)
    assert not _compiles("auto", ssdn, cuda)
