"""Runs that are killed, stopped, damaged or resumed on another world size end exactly like an uninterrupted run."""

import itertools
import random
import shutil

import pytest

from tests.denoise.training.attempts import attempt, digest, losses, messages, newest, state

STATEFUL = (
    "train.steps=30",
    "train.checkpoint_every=4",
    "train.ema=0.9",
    "train.optimizer=adamw",
    "train.augment=[flip, rotate]",
    "noise=gauss5_50",
)


def until_done(shards, folder, world, overrides, inject, most=60):
    """Restart a run until it finishes, with one fault each time; return how often it was killed."""
    for kills in range(most):
        codes = attempt(shards, folder, world, *overrides, inject=inject[kills : kills + 1])
        if codes == [0] * world:
            return kills
    raise AssertionError(f"not done after {most} attempts: {messages(folder)}")


def kills(seed, count, steps, world):
    """Return seeded faults: ranks killed between steps and in the middle of writing a checkpoint."""
    rng = random.Random(seed)
    steps_of = sorted(rng.sample(range(1, steps), count))
    kinds = [rng.choice(["kill", "kill", "kill-writing"]) for _ in steps_of]
    return [
        f"kill-writing:step={step}" if kind == "kill-writing" else f"kill:step={step},rank={rng.randrange(world)}"
        for kind, step in zip(kinds, steps_of, strict=True)
    ]


@pytest.mark.parametrize(("world", "count"), [(1, 5), (2, 3), pytest.param(2, 20, marks=pytest.mark.slow)])
def test_a_run_killed_repeatedly_ends_exactly_like_an_uninterrupted_one(small_shards, tmp_path, world, count):
    assert attempt(small_shards, tmp_path / "whole", world, *STATEFUL) == [0] * world
    inject = kills(world, count, 29, world)
    assert until_done(small_shards, tmp_path / "killed", world, STATEFUL, inject) == count
    assert state(tmp_path / "killed") == state(tmp_path / "whole")  # every byte: weights, optimizer, history, samples
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*"))  # nothing half-written is left


@pytest.fixture(scope="module")
def halves(small_shards, tmp_path_factory):
    """Runs of 1 to 4 ranks that were stopped after 3 of 6 steps, by world size."""
    folder = tmp_path_factory.mktemp("worlds")
    for world in range(1, 5):
        codes = attempt(small_shards, folder / str(world), world, *ELASTIC, inject=["term:step=2"])
        assert codes == [0] * world
        assert newest(folder / str(world)).name in ("step-00000003", "step-00000004")
    return folder


# SGD with small steps: Adam's first steps follow the sign of the gradient, so that rounding errors of gradients near
# zero grow.
ELASTIC = ("train.steps=6", "train.checkpoint_every=6", "train.optimizer=sgd", "train.lr=0.002", "noise=gauss5_50")


@pytest.fixture(scope="module")
def uninterrupted(small_shards, tmp_path_factory):
    """The same run on one rank, uninterrupted."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert attempt(small_shards, folder, 1, *ELASTIC) == [0]
    return folder


@pytest.mark.parametrize(("before", "after"), list(itertools.product(range(1, 5), repeat=2)))
def test_another_world_size_resumes_with_the_same_samples(small_shards, tmp_path, halves, uninterrupted, before, after):
    folder = shutil.copytree(halves / str(before), tmp_path / "run")
    assert attempt(small_shards, folder, after, *ELASTIC) == [0] * after
    assert digest(folder) == digest(uninterrupted)
    assert losses(folder) == pytest.approx(losses(uninterrupted), rel=1e-5)


@pytest.mark.parametrize("world", [1, 2])
def test_sigterm_saves_a_checkpoint_and_loses_no_step(small_shards, tmp_path, world):
    shape = ("train.steps=12", "train.checkpoint_every=6", "train.log_every=4")
    assert attempt(small_shards, tmp_path / "whole", world, *shape) == [0] * world
    folder = tmp_path / "stopped"
    inject = [f"term:step=7,rank={world - 1}"]
    assert attempt(small_shards, folder, world, *shape, inject=inject) == [0] * world
    saved = int(newest(folder).name.removeprefix("step-"))
    assert saved in (8, 9)  # at once, or one step later if several ranks have to agree
    assert (folder / "steps_done.txt").read_text().split() == [str(saved)]
    assert attempt(small_shards, folder, world, *shape) == [0] * world
    assert messages(folder) == [f"resuming from step-{saved:08d}"]
    for name in ("net.safetensors", "optimizer.safetensors", "model.json"):
        assert state(folder)[name] == state(tmp_path / "whole")[name]
    assert digest(folder) == digest(tmp_path / "whole")
    assert losses(folder) == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)


def test_a_damaged_checkpoint_is_skipped_for_an_older_one(small_shards, tmp_path):
    shape = ("train.steps=12", "train.checkpoint_every=3")
    assert attempt(small_shards, tmp_path / "whole", 1, *shape) == [0]
    inject = ["corrupt-checkpoint:step=6", "kill-writing:step=9"]
    assert attempt(small_shards, tmp_path / "run", 1, *shape, inject=inject) == [-9]
    assert attempt(small_shards, tmp_path / "run", 1, *shape) == [0]
    (message,) = messages(tmp_path / "run")
    assert message.startswith("warning: checkpoint step-00000006 is damaged (")
    assert message.endswith("; resuming from step-00000003")
    assert state(tmp_path / "run") == state(tmp_path / "whole")


def test_the_other_ranks_give_up_when_one_hangs(small_shards, tmp_path):
    timeout, hang = "ray.timeout=10", "hang:step=3,rank=1"
    codes = attempt(small_shards, tmp_path / "run", 2, "train.steps=6", timeout, inject=[hang], grace=1)
    assert codes[0] not in (0, None, -9)  # it gave up by itself
    assert codes[1] == -9
