"""On a GPU training and evaluating give what they give on a CPU, a run repeats its bits, and no step waits.

python -m pytest -m gpu tests/denoise                            # skips without a GPU
DENOISE_TEST_DEVICE=cpu python -m pytest -m gpu tests/denoise    # tries the tests themselves without one
"""

import pytest
import torch
from torch import Tensor

from denoise import distributed
from denoise.config import load_config, to_dict
from denoise.data.dataset import ShardedDataset
from denoise.data.loader import CropBatch, read_batches
from denoise.data.quarantine import Quarantine
from denoise.data.samples import IMAGE
from denoise.data.shards import Shards
from denoise.denoiser import Denoiser, make_card
from denoise.evaluate import PROTOCOLS, evaluate
from denoise.methods import with_net
from denoise.training.checkpoint import RunProgress
from denoise.training.history import TrainingHistory
from denoise.training.setup import build_components, init_train_state
from denoise.training.step import TrainStep
from tests.denoise.training.attempts import attempt, messages, state
from tests.denoise.training.test_loop import equal, run

pytestmark = pytest.mark.gpu

CPU = torch.device("cpu")
BATCH, CROP, STEPS = 2, 32, 6
TOLERANCE = 0.05  # on a CPU other rounding makes 0.006 where a kink is crossed, one step less 0.16 and more
SHAPE = (f"train.batch_size={BATCH}", f"train.crop={CROP}", f"train.steps={STEPS}")
# SGD: the first steps of Adam follow the signs of gradients, which rounding turns where they are near zero.
PLAIN = ("train.precision=fp32", "train.optimizer=sgd", "train.compile=no")
SSDN = ("method=ssdn", "train.crop=96", "train.lr=2e-5")  # with a larger rate rounding grows from step to step
METHODS = [("method=n2n", "train.ema=0.999"), SSDN, ("method=n2v",)]


@pytest.fixture(autouse=True)
def switches(gpu, monkeypatch):
    """Compute fp32 in fp32 with the same algorithms every time, and put back what training switches."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # PyTorch's default for convolutions is TF32
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def cuda(gpu):
    """A real GPU, for what a CPU does not have."""
    if gpu.type != "cuda":
        pytest.skip("is about pinned memory, waits or graphs of CUDA, which a CPU does not have")
    return gpu


def make_step(device: torch.device, *overrides: str) -> TrainStep:
    distributed.use_device(device)
    config = with_net(load_config(None, [*SHAPE, *overrides]))
    method, noise, _ = build_components(config)
    return TrainStep(config, init_train_state(config, method, device), method, noise)


def batch(step: int, device: torch.device, crop: int = CROP) -> CropBatch:
    generator = torch.Generator().manual_seed(step)
    image = torch.randint(256, (BATCH, crop, crop, 3), dtype=torch.uint8, generator=generator).permute(0, 3, 1, 2)
    return CropBatch(torch.arange(BATCH), {IMAGE: image.pin_memory() if device.type == "cuda" else image}, [0, 1])


def weights(train_step: TrainStep) -> Tensor:
    parameters = train_step.train_state.model.parameters()  # the averaged ones if there is an average
    return torch.cat([parameter.detach().cpu().double().flatten() for parameter in parameters])


def movement(train_step: TrainStep) -> Tensor:
    """Take some steps, and return how far they have moved the weights of the model."""
    start = weights(train_step)
    for step in range(STEPS):
        train_step(step, batch(step, train_step.device, train_step.spec.crop_pixels), train_step.spec.lr)
    return weights(train_step) - start


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()  # NaN, below nothing, where nothing has moved


@pytest.mark.parametrize("overrides", METHODS, ids=" ".join)
def test_steps_move_the_weights_as_on_a_cpu(gpu, overrides):
    here, there = (movement(make_step(device, *PLAIN, *overrides)) for device in (CPU, gpu))
    assert relative_error(there, here) < TOLERANCE


@pytest.mark.parametrize("overrides", [*METHODS, ("method=n2n", "noise=poisson30")], ids=" ".join)
def test_no_step_waits_for_the_gpu(cuda, overrides):
    train_step = make_step(cuda, "train.compile=no", *overrides)
    history, crops = TrainingHistory(RunProgress(), cuda), batch(0, cuda, train_step.spec.crop_pixels)
    history.record_step(0, crops, train_step(0, crops, train_step.spec.lr))  # fills the caches
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(1, STEPS):
            history.record_step(step, crops, train_step(step, crops, train_step.spec.lr))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_crops_of_a_batch_are_pinned_and_so_are_those_of_its_parts(cuda, small_shards):
    config, images = load_config(None, SHAPE), ShardedDataset([Shards.open(small_shards)])
    method, noise, _ = build_components(config)
    batches = read_batches(config, images, method, noise, quarantine=Quarantine(), start=0)
    assert all(view.is_pinned() for part in next(batches).parts(1) for view in part.views.values())
    batches.close()


@pytest.mark.parametrize("overrides", METHODS, ids=" ".join)
def test_deterministic_runs_leave_the_same_bits(small_shards, tmp_path, overrides):
    shape = ("train.deterministic=true", "train.compile=no", *overrides)
    (rows, first, _), (others, second, _) = (run(small_shards, tmp_path / name, *shape) for name in ("1", "2"))
    assert [row["loss"] for row in others] == [row["loss"] for row in rows]
    assert equal(first, second)


def test_a_killed_deterministic_run_ends_with_the_bits_of_an_uninterrupted_one(small_shards, tmp_path):
    shape = ("train.steps=9", "train.checkpoint_every=3", "train.ema=0.999", "train.deterministic=true")
    assert attempt(small_shards, tmp_path / "whole", 1, *shape) == [0]
    assert attempt(small_shards, tmp_path / "killed", 1, *shape, inject=["kill:step=7"]) == [-9]
    assert attempt(small_shards, tmp_path / "killed", 1, *shape) == [0]
    (message,) = messages(tmp_path / "killed")
    assert message in ("resuming from step-00000003", "resuming from step-00000006")  # the latter was being written
    assert state(tmp_path / "killed") == state(tmp_path / "whole")


@pytest.mark.parametrize(
    "overrides",
    [
        (*PLAIN, "method=n2n", "train.ema=0.9"),
        (*PLAIN, "method=n2v"),
        ("train.precision=fp32", "method=n2n"),  # with Adam
        ("train.precision=fp32", "train.optimizer=sgd", *SSDN),  # compiled, where that is possible
    ],
    ids=" ".join,
)
def test_a_graph_moves_the_weights_as_eager_steps_do(cuda, overrides):
    eager, graphed = make_step(cuda, *overrides), make_step(cuda, *overrides, "train.cuda_graphs=true")
    assert relative_error(movement(graphed), movement(eager)) < TOLERANCE
    assert graphed.graph.graph is not None


def test_a_run_with_a_graph_reports_the_losses_of_one_without(cuda, small_shards, tmp_path):
    shape = (*PLAIN, "net=cnn5", "train.lr=0.002", "train.train_psnr=true")
    rows, _, _ = run(small_shards, tmp_path / "eager", *shape)
    others, _, said = run(small_shards, tmp_path / "graph", *shape, "train.cuda_graphs=true")
    assert said == []  # no sentence that there is no graph
    for key in ("loss", "train_psnr"):
        assert [row.get(key, 0) for row in others] == pytest.approx([row.get(key, 0) for row in rows], rel=1e-4)


def evaluation(device: torch.device, method_name: str, shards):
    config = with_net(load_config(None, [f"method={method_name}"]))
    method, noise, _ = build_components(config)
    net = init_train_state(config, method, device).net.eval()
    denoiser = Denoiser(net, method, make_card(to_dict(config), channels=3))
    return evaluate(denoiser, Shards.open(shards), "mine", noise, PROTOCOLS["float"], device)


@pytest.mark.parametrize("method_name", ["n2n", "ssdn"])
def test_an_evaluation_gives_the_scores_of_a_cpu(gpu, small_shards, method_name):
    here, there = (evaluation(device, method_name, small_shards) for device in (CPU, gpu))
    for score in ("noisy_psnr", "psnr", "noisy_ssim", "ssim"):
        assert there[score] == pytest.approx(here[score], abs=1e-3)
