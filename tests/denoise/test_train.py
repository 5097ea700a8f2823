import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from denoise.checkpoint import read_card
from denoise.collection import Collection
from denoise.config import load_config
from denoise.errors import UserError
from denoise.shards import DamagedError, Shards
from denoise.train import train

BASE = ["train.steps=6", "train.crop=32", "train.log_every=1", "train.eval_every=6", "train.checkpoint_every=3"]


def run(shards: Path, folder: Path, *overrides: str, resume: Path | None = None):
    """Train in this process; return what was reported and the final weights."""
    pictures = Collection([Shards.open(shards)])
    rows, checkpoints = [], []

    def report(metrics, checkpoint):
        rows.append(dict(metrics))
        if checkpoint:
            checkpoints.append(checkpoint)

    train(load_config(None, [*BASE, *overrides]), pictures, pictures, folder, report, resume)
    return rows, load_file(checkpoints[-1] / "net.safetensors"), checkpoints


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


AVERAGED = ("train.ema=0.9", "train.optimizer=adamw", "train.augment=[flip, rotate]", "data.fixed_noise=true")


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.precision=fp32",),
        ("train.precision=bf16",),
        ("method=ssdn", "method.sigma=variable", "train.optimizer=sgd"),
        ("method=n2v", "net=dncnn", "net.depth=4", *AVERAGED),  # batch normalisation has buffers
    ],
    ids=str,
)
def test_a_resumed_run_ends_exactly_where_an_uninterrupted_one_does(small_shards, tmp_path, overrides):
    rows, weights, checkpoints = run(small_shards, tmp_path / "whole", *overrides)
    assert [path.name for path in checkpoints] == ["step-00000003", "step-00000006"]
    again, resumed, _ = run(small_shards, tmp_path / "resumed", *overrides, resume=checkpoints[0])
    assert [row["step"] for row in again] == [4, 5, 6]
    assert [row["loss"] for row in again] == [row["loss"] for row in rows[3:]]
    assert equal(weights, resumed)
    history = (tmp_path / "resumed" / "checkpoints" / "step-00000006" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in history] == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_has_nothing_left_to_do(small_shards, tmp_path):
    _, _, checkpoints = run(small_shards, tmp_path / "whole")
    with pytest.raises(IndexError):  # nothing was reported
        run(small_shards, tmp_path / "again", resume=checkpoints[-1])


def test_the_same_seed_repeats_and_another_does_not(small_shards, tmp_path):
    _, first, _ = run(small_shards, tmp_path / "1")
    _, second, _ = run(small_shards, tmp_path / "2")
    _, other, _ = run(small_shards, tmp_path / "3", "seed=1")
    assert equal(first, second)
    assert not equal(first, other)


@pytest.fixture
def harmed(small_shards, tmp_path):
    """Shards of which one has changed, and how many samples it holds."""
    folder = Path(shutil.copytree(small_shards, tmp_path / "harmed"))
    path = folder / "000001.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(bytes(data))
    return folder, Shards.open(folder).counts[1]


def test_damage_ends_the_run_before_it_is_learnt_from(harmed, small_shards, tmp_path):
    with pytest.raises(DamagedError, match=r"000001\.tar has another sha256"):
        run(harmed[0], tmp_path / "run", "train.batch_size=8")


def test_damage_within_the_quarantine_is_counted_and_named(harmed, tmp_path):
    folder, count = harmed
    sound = Collection([Shards.open(folder)])
    rows, checkpoints = [], []
    overrides = [*BASE, "train.batch_size=8", f"data.quarantine={count}"]

    def report(metrics, checkpoint):
        rows.append(dict(metrics))
        checkpoints.append(checkpoint)

    train(load_config(None, overrides), sound, None, tmp_path / "run", report)
    assert rows[-1]["quarantined"] == count
    assert all(row["quarantined"] <= count for row in rows)
    left_out = read_card(checkpoints[-1])["provenance"]["left_out"]
    assert len(left_out) == count
    assert all("000001.tar has another sha256" in one["reason"] for one in left_out)
    with pytest.raises(DamagedError):
        run(folder, tmp_path / "less", "train.batch_size=8", f"data.quarantine={count - 1}")


def test_pictures_smaller_than_a_crop_are_left_out_if_asked_to(small_shards, tmp_path):
    with pytest.raises(UserError, match=r"none of the 5 training pictures .* data\.small=pad"):
        run(small_shards, tmp_path, "train.crop=256", "data.small=leave_out")


def test_validation_and_its_picture_come_when_asked_for(small_shards, tmp_path):
    from denoise.images import read_picture

    rows, _, _ = run(small_shards, tmp_path, "train.eval_every=4")
    assert [row["step"] for row in rows if "val_psnr" in row] == [4, 6]
    strip = read_picture(tmp_path / "pictures" / "step-000006.png").pixels
    assert strip.shape == (96, 3 * 128, 3)
    assert {"step", "loss", "lr", "images_per_second", "val_psnr", "val_ssim"} == set(rows[-1])


def test_learning_reduces_the_loss(small_shards, tmp_path):
    rows, _, _ = run(
        small_shards,
        tmp_path,
        "train.steps=40",
        "train.log_every=10",
        "train.checkpoint_every=40",
        "train.eval_every=40",
    )
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]


@pytest.mark.parametrize("method", ["n2c", "n2n"])
def test_grey_pictures_and_a_range_of_noise(small_shards, tmp_path, method):
    _, weights, _ = run(
        small_shards, tmp_path, f"method={method}", "data.colour=grey", "noise=gauss5_50", "method.loss_name=l1"
    )
    assert weights["dec_conv1c.weight"].shape == (1, 32, 3, 3)


def test_a_loss_that_diverges_stops_with_a_reason(small_shards, tmp_path):
    with pytest.raises(UserError, match=r"the loss is .* lower train.lr"):
        run(small_shards, tmp_path, "train.lr=1e30", "train.schedule=fixed")


def test_subsampled_pictures_are_cropped_larger(small_shards, tmp_path):
    rows, _, _ = run(small_shards, tmp_path, "noise=subsample2", "method=n2n", "train.eval_every=3")
    assert rows[-1]["val_psnr"] > 0
    from denoise.images import read_picture

    assert read_picture(tmp_path / "pictures" / "step-000006.png").pixels.shape == (48, 3 * 64, 3)


def test_a_method_that_needs_no_training_says_so(small_shards, tmp_path):
    with pytest.raises(UserError, match="zs_n2n needs no training; use it as it is: denoise restore"):
        run(small_shards, tmp_path, "method=zs_n2n")


def test_a_crop_that_does_not_suit_the_net_is_refused(small_shards, tmp_path):
    with pytest.raises(UserError, match="train.crop=40 .* use 32"):
        run(small_shards, tmp_path, "train.crop=40")


def launch(shards: Path, folder: Path, world: int, *overrides: str):
    """Train with torchrun on ``world`` processes (plainly for one) and return what was reported, and the weights."""
    folder.mkdir()
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"] if world > 1 else []
    worker = Path(__file__).with_name("ddp_worker.py")
    command = [sys.executable, *launcher, worker, folder, shards, *BASE, "train.precision=fp32", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    weights = load_file(folder / "checkpoints" / "step-00000006" / "net.safetensors")
    return json.loads((folder / "rows.json").read_text()), weights


def test_world_sizes_agree(small_shards, tmp_path):
    """1, 2 and 3 workers (4 samples a batch: 2 + 1 + 1) see the same samples and noise, and learn the same.

    By small steps of SGD: Adam's first steps follow the sign of the gradient, and where that is zero but for rounding,
    or a maximum has two nearly equal candidates, large steps make 1e-5 of 1e-7.
    """
    plain = ("train.optimizer=sgd", "train.lr=0.002", "noise=gauss5_50")
    rows, weights = launch(small_shards, tmp_path / "1", 1, *plain)
    for world in (2, 3):
        others, theirs = launch(small_shards, tmp_path / str(world), world, *plain)
        assert [row["loss"] for row in others] == pytest.approx([row["loss"] for row in rows], rel=1e-5)
        assert all(torch.allclose(weights[name], theirs[name], atol=1e-4) for name in weights)
