import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from denoise.config import load_config
from denoise.data.dataset import ShardedDataset
from denoise.data.shards import DamagedError, Shards
from denoise.denoiser import read_card
from denoise.errors import UserError
from denoise.training.checkpoint_manager import CheckpointManager, FolderStore
from denoise.training.fault_injection import FaultInjector, parse_fault
from denoise.training.loop import train

BASE = ["train.steps=6", "train.crop=32", "train.log_every=1", "train.eval_every=6", "train.checkpoint_every=3"]


def run(shards: Path, folder: Path, *overrides: str, faults: Sequence[str] = (), validate: bool = True):
    """Train in this process, resuming from ``folder``; return the reports, the final weights, and the messages."""
    images, rows, messages = ShardedDataset([Shards.open(shards)]), [], []
    checkpoints = CheckpointManager(FolderStore(folder / "checkpoints"), on_message=messages.append)
    train(
        load_config(None, [*BASE, *overrides]),
        train_set=images,
        val_set=images if validate else None,
        folder=folder,
        report=lambda row: rows.append(dict(row)),
        checkpoints=checkpoints,
        faults=FaultInjector([parse_fault(text) for text in faults]),
    )
    return rows, load_file(newest(folder) / "net.safetensors"), messages


def newest(folder: Path) -> Path:
    """Return the newest checkpoint of a run."""
    return max((folder / "checkpoints").glob("step-*"))


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


LEAST = ("train.crop=96", "train.batch_size=1", "train.val_images=1")  # for ssdn, which costs much
AVERAGED = ("train.ema=0.9", "train.optimizer=adamw", "train.augment=[flip, rotate]", "data.fixed_noise=true")


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (("train.precision=fp32",), 6),
        (("train.precision=bf16",), 6),
        (("method=ssdn", "method.sigma=variable", "train.optimizer=sgd", "train.momentum=0.9", *LEAST), 2),
        (("method=n2v", "net=dncnn", "net.depth=4", *AVERAGED), 6),  # batch normalisation has buffers
    ],
    ids=str,
)
def test_a_resumed_run_ends_exactly_like_an_uninterrupted_one(small_shards, tmp_path, overrides, steps):
    half, first, last = steps // 2, f"step-{steps // 2:08d}", f"step-{steps:08d}"
    overrides = (*overrides, f"train.steps={steps}", f"train.eval_every={steps}", f"train.checkpoint_every={half}")
    rows, weights, messages = run(small_shards, tmp_path / "whole", *overrides)
    assert messages == []
    saved = tmp_path / "whole" / "checkpoints"
    assert sorted(path.name for path in saved.iterdir()) == [first, last]
    shutil.copytree(saved / first, tmp_path / "resumed" / "checkpoints" / first)
    rest, resumed, messages = run(small_shards, tmp_path / "resumed", *overrides)
    assert messages == [f"resuming from {first}"]
    assert [row["step"] for row in rest] == list(range(half + 1, steps + 1))
    assert [row["loss"] for row in rest] == [row["loss"] for row in rows[half:]]
    assert equal(weights, resumed)
    history = (newest(tmp_path / "resumed") / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in history] == list(range(1, steps + 1))


def test_a_finished_run_does_no_more_steps(small_shards, tmp_path):
    run(small_shards, tmp_path)
    assert run(small_shards, tmp_path)[0] == []


def test_the_best_checkpoint_is_kept_beside_the_newest(small_shards, tmp_path):
    rows, _, _ = run(small_shards, tmp_path, "train.checkpoint_every=1", "train.eval_every=1", "train.lr=0.05")
    best = max(rows, key=lambda row: row["val_psnr"])["step"]
    saved = {int(path.name.removeprefix("step-")) for path in (tmp_path / "checkpoints").iterdir()}
    assert saved == {5, 6, best}


@pytest.mark.parametrize("method", ["n2n", "n2v", "nb2nb"])
def test_micro_batches_learn_what_the_whole_batch_does(small_shards, tmp_path, method):
    sgd = ["train.optimizer=sgd", "train.momentum=0.9", "train.lr=0.002", "train.precision=fp32"]
    overrides = [f"method={method}", *sgd, "train.steps=2"]
    rows, _, _ = run(small_shards, tmp_path / "whole", *overrides, validate=False)
    parts, _, _ = run(small_shards, tmp_path / "parts", *overrides, "train.micro_batch=3", validate=False)
    assert [row["loss"] for row in parts] == pytest.approx([row["loss"] for row in rows], rel=1e-5)


def test_out_of_memory_names_what_to_lower_or_halves_the_micro_batch(small_shards, tmp_path):
    plain = ("train.optimizer=sgd", "train.lr=0.002", "train.precision=fp32")
    faults = ["memory:step=2"]
    with pytest.raises(UserError, match=r"4 crops of 32 pixels .* lower train.micro_batch=2, .*train\.oom=halve"):
        run(small_shards, tmp_path / "stopped", *plain, faults=faults)
    rows, _, _ = run(small_shards, tmp_path / "whole", *plain)
    halved, _, _ = run(small_shards, tmp_path / "halved", *plain, "train.oom=halve", faults=faults)
    assert [row["loss"] for row in halved] == pytest.approx([row["loss"] for row in rows], rel=1e-5)


def test_a_nan_loss_names_its_step_and_samples(small_shards, tmp_path):
    with pytest.raises(UserError, match=r"the loss is nan at step 3, on samples \d+ \(\w+.*\).* train.skip_nonfinite"):
        run(small_shards, tmp_path, "train.log_every=3", faults=["nan:step=2"])
    assert not list(tmp_path.glob("checkpoints/*"))  # weights that are not finite are not saved


def test_steps_without_a_finite_loss_are_skipped_up_to_the_limit(small_shards, tmp_path):
    faults = ["nan:step=1", "nan:step=3"]
    rows, weights, _ = run(small_shards, tmp_path / "two", "train.skip_nonfinite=2", faults=faults)
    assert rows[-1]["skipped"] == 2
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights.values())
    with pytest.raises(UserError, match=r"the loss of 2 steps was not finite, more than the 1 of"):
        run(small_shards, tmp_path / "one", "train.skip_nonfinite=1", faults=faults)


@pytest.mark.smoke
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


# Every batch reads every image from the shards: without a cache, which another process may have filled.
ALL_READ = ("train.batch_size=8", "data.cache_mb=0")


def test_damaged_data_end_the_run_before_they_are_trained_on(harmed, tmp_path):
    with pytest.raises(DamagedError, match=r"000001\.tar has another sha256"):
        run(harmed[0], tmp_path / "run", *ALL_READ)


def test_damaged_samples_within_the_quarantine_are_counted_and_named(harmed, tmp_path):
    folder, count = harmed
    rows, _, _ = run(folder, tmp_path / "run", *ALL_READ, f"data.quarantine={count}", validate=False)
    assert rows[-1]["quarantined"] == count
    assert all(row["quarantined"] <= count for row in rows)
    left_out = read_card(newest(tmp_path / "run"))["provenance"]["left_out"]
    assert len(left_out) == count
    assert all("000001.tar has another sha256" in sample["reason"] for sample in left_out)
    with pytest.raises(DamagedError):
        run(folder, tmp_path / "less", *ALL_READ, f"data.quarantine={count - 1}")


def test_cached_images_stay_intact_when_their_shards_are_damaged(harmed, small_shards, tmp_path):
    intact = ShardedDataset([Shards.open(small_shards)])
    intact.keep_decoded(256 << 20)
    for index in range(len(intact)):
        intact.pixels(index, "clean")
    rows, weights, _ = run(harmed[0], tmp_path / "cached", "train.batch_size=8", "data.quarantine=9", validate=False)
    assert rows[-1]["quarantined"] == 0
    intact.close()
    _, plain, _ = run(small_shards, tmp_path / "intact", *ALL_READ, validate=False)
    assert equal(weights, plain)


def test_a_run_without_images_of_the_crop_size_says_what_to_do(small_shards, tmp_path):
    with pytest.raises(UserError, match=r"none of the 5 training images .* data\.small=pad"):
        run(small_shards, tmp_path, "train.crop=256", "data.small=leave_out")


def test_validation_scores_and_images_come_every_eval_every_steps(small_shards, tmp_path):
    from denoise.images.io import read_image

    rows, _, _ = run(small_shards, tmp_path, "train.eval_every=4")
    assert [row["step"] for row in rows if "val_psnr" in row] == [4, 6]
    strip = read_image(tmp_path / "images" / "step-000006.png").pixels
    assert strip.shape == (96, 3 * 128, 3)
    assert {"step", "loss", "lr", "images_per_second", "val_psnr", "val_ssim", "val_mse"} == set(rows[-1])


def test_the_psnr_of_training_crops_changes_nothing_else(small_shards, tmp_path):
    shape = ("method=n2v", "net=dncnn", "net.depth=3", "train.ema=0.9", "train.micro_batch=3", "train.eval_every=3")
    rows, weights, _ = run(small_shards, tmp_path / "without", *shape)
    others, same, _ = run(small_shards, tmp_path / "with", *shape, "train.train_psnr=true")
    assert [row["step"] for row in others if row.pop("train_psnr", None)] == [3, 6]
    for row in (*rows, *others):
        del row["images_per_second"]
    assert others == rows
    assert equal(weights, same)


@pytest.mark.smoke
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
def test_grey_images_and_a_range_of_noise(small_shards, tmp_path, method):
    _, weights, _ = run(
        small_shards, tmp_path, f"method={method}", "data.colour=grey", "noise=gauss5_50", "method.loss_name=l1"
    )
    assert weights["dec_conv1c.weight"].shape == (1, 32, 3, 3)


def test_a_diverging_loss_stops_with_a_reason(small_shards, tmp_path):
    with pytest.raises(UserError, match=r"the loss is .* lower train.lr"):
        run(small_shards, tmp_path, "train.lr=1e30", "train.schedule=fixed")


def test_subsampled_images_are_cropped_larger(small_shards, tmp_path):
    rows, _, _ = run(small_shards, tmp_path, "noise=subsample2", "method=n2n", "train.eval_every=3")
    assert rows[-1]["val_psnr"] > 0
    from denoise.images.io import read_image

    assert read_image(tmp_path / "images" / "step-000006.png").pixels.shape == (48, 3 * 64, 3)


def test_a_method_that_needs_no_training_says_so(small_shards, tmp_path):
    with pytest.raises(UserError, match="zs_n2n needs no training; use it as it is: denoise restore"):
        run(small_shards, tmp_path, "method=zs_n2n")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("train.crop=40",), r"train\.crop=40 .* multiples of 32; use 32\."),
        (("train.crop=64", "method=ssdn"), r"train\.crop=64 is too small .* below 96 pixels .* never learn; use 96 or"),
        (("train.crop=100", "method=ssdn", "method.mu_only=true"), r"train\.crop=100 .* multiples of 32; use 96\."),
    ],
)
def test_a_crop_that_does_not_suit_the_net_is_refused(small_shards, tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        run(small_shards, tmp_path, *overrides)


def test_a_profile_is_a_page_and_a_timeline(small_shards, tmp_path):
    train(
        load_config(None, [*BASE, "net=cnn5", "train.steps=16"]),
        train_set=ShardedDataset([Shards.open(small_shards)]),
        val_set=None,
        folder=tmp_path,
        report=lambda row: None,
        checkpoints=CheckpointManager(FolderStore(tmp_path / "checkpoints")),
        profile=tmp_path / "profile",
    )
    page = (tmp_path / "profile" / "profile.html").read_text()
    assert "10 training steps" in page
    assert "convolution_backward" in page
    names = {event["name"] for event in json.loads((tmp_path / "profile" / "trace.json").read_text())["traceEvents"]}
    assert {"ProfilerStep#5", "ProfilerStep#14"} <= names


@pytest.mark.slow
@pytest.mark.parametrize("switch", ["compile=true", "cuda_graphs=true", "fused=false", "channels_last=false"])
def test_switches_of_speed_change_nothing_but_rounding(small_shards, tmp_path, switch):
    plain = ("train.optimizer=sgd", "train.lr=0.002", "train.precision=fp32", "net=cnn5")
    rows, _, _ = run(small_shards, tmp_path / "plain", *plain)
    others, _, _ = run(small_shards, tmp_path / "switched", *plain, f"train.{switch}")
    assert [row["loss"] for row in others] == pytest.approx([row["loss"] for row in rows], rel=1e-5)


def test_the_validation_loss_of_an_unchanged_net_is_always_the_same(small_shards, tmp_path):
    """With this learning rate the net does not change: only the training loss varies, with its noise and masks."""
    still = ("method=n2v", "net=cnn5", "train.lr=1e-12", "train.precision=fp32", "train.val_loss=true")
    rows, _, _ = run(small_shards, tmp_path, *still, "train.eval_every=2", "train.log_every=2")
    validation = [row["val_loss"] for row in rows if "val_loss" in row]
    assert len(validation) > 1
    assert validation == pytest.approx([validation[0]] * len(validation), rel=1e-5)
    assert len({round(row["loss"], 5) for row in rows}) > 1
