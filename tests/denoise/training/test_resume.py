"""Runs that are killed, stopped, damaged and shared by other numbers of ranks end where an untouched one does."""

import itertools
import random
import shutil

import pytest

from tests.denoise.training.attempts import attempt, digest, losses, newest, said, state

STATEFUL = (
    "train.steps=30",
    "train.checkpoint_every=4",
    "train.ema=0.9",
    "train.optimizer=adamw",
    "train.augment=[flip, rotate]",
    "noise=gauss5_50",
)


def until_done(shards, folder, world, overrides, inject, most=60):
    """Start the same run again until it ends by itself, a fault at a time; return how often it was killed."""
    for kills in range(most):
        codes = attempt(shards, folder, world, *overrides, inject=inject[kills : kills + 1])
        if codes == [0] * world:
            return kills
    raise AssertionError(f"not done after {most} attempts: {said(folder)}")


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
def test_a_run_killed_again_and_again_ends_exactly_where_an_untouched_one_does(small_shards, tmp_path, world, count):
    assert attempt(small_shards, tmp_path / "whole", world, *STATEFUL) == [0] * world
    inject = kills(world, count, 29, world)
    assert until_done(small_shards, tmp_path / "killed", world, STATEFUL, inject) == count
    assert state(tmp_path / "killed") == state(tmp_path / "whole")  # every byte: weights, optimizer, history, samples
    assert not list((tmp_path / "killed" / "checkpoints").glob(".*"))  # nothing half-written is left


@pytest.fixture(scope="module")
def halves(small_shards, tmp_path_factory):
    """Runs of 1 to 4 ranks that were told to leave after 3 of 6 steps, by their number of ranks."""
    folder = tmp_path_factory.mktemp("worlds")
    for world in range(1, 5):
        codes = attempt(small_shards, folder / str(world), world, *ELASTIC, inject=["term:step=2"])
        assert codes == [0] * world
        assert newest(folder / str(world)).name in ("step-00000003", "step-00000004")
    return folder


# By small steps of SGD: Adam's first steps follow the sign of the gradient, and where that is zero but for rounding,
# large steps make 1e-5 of 1e-7.
ELASTIC = ("train.steps=6", "train.checkpoint_every=6", "train.optimizer=sgd", "train.lr=0.002", "noise=gauss5_50")


@pytest.fixture(scope="module")
def alone(small_shards, tmp_path_factory):
    """The same run by one rank that nobody disturbed."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    assert attempt(small_shards, folder, 1, *ELASTIC) == [0]
    return folder


@pytest.mark.parametrize(("before", "after"), list(itertools.product(range(1, 5), repeat=2)))
def test_another_number_of_ranks_goes_on_with_the_same_samples(small_shards, tmp_path, halves, alone, before, after):
    folder = shutil.copytree(halves / str(before), tmp_path / "run")
    assert attempt(small_shards, folder, after, *ELASTIC) == [0] * after
    assert digest(folder) == digest(alone)
    assert losses(folder) == pytest.approx(losses(alone), rel=1e-5)


@pytest.mark.parametrize("world", [1, 2])
def test_sigterm_saves_a_checkpoint_and_loses_no_step(small_shards, tmp_path, world):
    shape = ("train.steps=12", "train.checkpoint_every=6", "train.log_every=4")
    assert attempt(small_shards, tmp_path / "whole", world, *shape) == [0] * world
    folder = tmp_path / "stopped"
    inject = [f"term:step=7,rank={world - 1}"]
    assert attempt(small_shards, folder, world, *shape, inject=inject) == [0] * world
    left = int(newest(folder).name.removeprefix("step-"))
    assert left in (8, 9)  # at once, or a step later where several ranks have to agree
    assert (folder / "done.txt").read_text().split() == [str(left)]
    assert attempt(small_shards, folder, world, *shape) == [0] * world
    assert said(folder) == [f"going on from step-{left:08d}"]
    for name in ("net.safetensors", "optimizer.safetensors", "model.json"):
        assert state(folder)[name] == state(tmp_path / "whole")[name]
    assert digest(folder) == digest(tmp_path / "whole")
    assert losses(folder) == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)


def test_a_checkpoint_that_was_damaged_on_its_way_is_walked_back_from(small_shards, tmp_path):
    shape = ("train.steps=12", "train.checkpoint_every=3")
    assert attempt(small_shards, tmp_path / "whole", 1, *shape) == [0]
    inject = ["corrupt-checkpoint:step=6", "kill-writing:step=9"]
    assert attempt(small_shards, tmp_path / "run", 1, *shape, inject=inject) == [-9]
    assert attempt(small_shards, tmp_path / "run", 1, *shape) == [0]
    (sentence,) = said(tmp_path / "run")
    assert sentence.startswith("warning: checkpoint step-00000006 is damaged (")
    assert sentence.endswith("; going on from step-00000003")
    assert state(tmp_path / "run") == state(tmp_path / "whole")


def test_a_rank_that_hangs_ends_the_others(small_shards, tmp_path):
    codes = attempt(small_shards, tmp_path / "run", 2, "train.steps=6", "ray.timeout=10", inject=["hang:step=3,rank=1"])
    assert codes[0] not in (0, None, -9)  # it gave up by itself
    assert codes[1] == -9
