"""A student and its teacher, in real runs of the loop."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from denoise.config import load_config, to_dict
from denoise.denoiser import load_denoiser, make_card, read_card, save_model
from denoise.errors import UserError
from denoise.methods import build_method, with_net
from denoise.nets import NetMaker
from denoise.noise import parse_noise
from denoise.rng import batch_rng
from denoise.training.setup import build_components
from denoise.training.teacher import load_teacher
from tests.denoise.training.attempts import attempt
from tests.denoise.training.test_loop import equal, newest, run

STUDENT = ("method=distil", "net=cnn5", "train.precision=fp32", "train.steps=4", "train.checkpoint_every=2")


def make_teacher(folder, *overrides):
    """Write a model with fresh weights."""
    torch.manual_seed(0)
    config = with_net(load_config(None, overrides))
    method = build_method(config.method.name, config.method.fields, parse_noise(config.noise))
    net = method.make_net(NetMaker(config.net.name, config.data.channels, config.net.fields))
    save_model(folder, net, make_card(to_dict(config), config.data.channels))
    return folder


def teacher_of(folder, *overrides):
    config = load_config(None, ["method=distil", f"train.teacher={folder}", "train.precision=fp32", *overrides])
    return load_teacher(config, torch.device("cpu"), {})


@pytest.mark.parametrize(
    ("teacher", "overrides"),
    [
        (["net=cnn5"], ["train.micro_batch=2"]),
        (["method=r2r", "net=cnn5"], ["noise=gauss5_50", "data.fixed_noise=true"]),
        (["method=atbsn", "train.crop=96"], ["noise=corr25_0.8", "train.steps=2", "train.batch_size=1"]),
        (["method=n2v", "net=dncnn", "net.depth=4"], ["noise=none", "train.val_loss=true"]),
    ],
    ids=str,
)
def test_a_student_trains_and_resumes_and_leaves_its_teacher_as_it_was(small_shards, tmp_path, teacher, overrides):
    folder = make_teacher(tmp_path / "teacher", *teacher)
    before, digest = load_file(folder / "net.safetensors"), load_denoiser(folder).digest
    overrides = (*STUDENT, f"train.teacher={folder}", "train.eval_every=100", *overrides)
    rows, weights, _ = run(small_shards, tmp_path / "whole", *overrides)
    assert ("val_loss" in rows[-1]) == ("train.val_loss=true" in overrides)
    first = min((tmp_path / "whole/checkpoints").iterdir())
    shutil.copytree(first, tmp_path / "resumed/checkpoints" / first.name)
    _, resumed, _ = run(small_shards, tmp_path / "resumed", *overrides)
    assert equal(weights, resumed)
    assert equal(before, load_file(folder / "net.safetensors"))
    assert read_card(newest(tmp_path / "whole"))["provenance"]["teacher"] == digest
    assert set(weights) == set(NetMaker("cnn5", 3, {})().state_dict())  # nothing of the teacher's


def test_ranks_learn_together_what_one_learns(small_shards, tmp_path):
    folder = make_teacher(tmp_path / "teacher", "method=r2r", "method.alpha=0.3", "net=cnn5", "net.features=4")
    overrides = ("method=distil", f"train.teacher={folder}", "train.steps=3", "train.checkpoint_every=3")
    sgd = ("train.optimizer=sgd", "train.lr=0.002")
    for world in (1, 2):
        assert attempt(small_shards, tmp_path / str(world), world, *overrides, *sgd) == [0] * world
    one, two = (load_file(newest(tmp_path / str(world)) / "net.safetensors") for world in (1, 2))
    for name, weights in one.items():
        torch.testing.assert_close(weights, two[name], rtol=0, atol=1e-5)


def test_a_student_comes_closer_to_its_teacher(small_shards, tmp_path):
    folder = make_teacher(tmp_path / "teacher", "net=cnn5", "net.features=4")
    rows, _, _ = run(small_shards, tmp_path, *STUDENT, f"train.teacher={folder}", "train.steps=60", "train.lr=3e-3")
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]


def test_the_targets_are_what_the_teacher_restores_with_all_its_passes(tmp_path):
    folder = make_teacher(tmp_path / "teacher", "method=r2r", "net=cnn5", "net.features=4")
    teacher, noisy, level = teacher_of(folder), torch.rand(2, 3, 40, 33), torch.full((2, 1, 1, 1), 0.1)
    rng = batch_rng(0, 0, torch.arange(2))
    targets = teacher(noisy, level, rng)
    assert targets.shape == noisy.shape
    assert not targets.is_inference()
    assert torch.equal(targets, teacher(noisy, level, rng))
    alone = teacher(noisy[1:], level[1:], batch_rng(0, 0, torch.tensor([1])))
    torch.testing.assert_close(targets[1:], alone)  # however a batch is divided
    assert not torch.equal(targets, teacher(noisy, 2 * level, rng))


def test_a_teacher_of_several_targets_gives_them_side_by_side(tmp_path):
    folder = make_teacher(tmp_path / "teacher", "method=atbsn", "data.colour=grey")
    targets = teacher_of(folder, "data.colour=grey")(torch.rand(1, 1, 33, 47), None, None)
    assert targets.shape == (1, 7, 33, 47)
    assert not targets.requires_grad


def test_what_a_teacher_needs_to_know_is_read_from_its_card(tmp_path):
    told = make_teacher(tmp_path / "ssdn", "method=ssdn")
    untold = make_teacher(tmp_path / "atbsn", "method=atbsn")
    for folder, views in ((told, ("noisy", "level", "taught")), (untold, ("noisy", "taught"))):
        method, _, _ = build_components(load_config(None, ["method=distil", f"train.teacher={folder}"]))
        assert method.views() == views
        assert method.net == "unet_ssdn"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=distil"], "method=distil learns from a trained model and was given none; give train.teacher=FOLDER"),
        (["method=n2n", "train.teacher=X"], "train.teacher=X is without effect: method=n2n learns from no teacher"),
        (["method=distil", "train.teacher=nowhere"], "nowhere is no model folder: it has no model.json"),
        (["method=distil", "train.teacher=TEACHER", "data.colour=grey"], "restores images of 3 channels, and data.col"),
    ],
)
def test_a_teacher_that_cannot_be_used_is_reported(tmp_path, overrides, message):
    folder = make_teacher(tmp_path / "teacher", "net=cnn5")
    with pytest.raises(UserError, match=message):
        build_components(load_config(None, [text.replace("TEACHER", str(folder)) for text in overrides]))


def test_another_model_in_the_teachers_place_is_refused(tmp_path):
    folder = make_teacher(tmp_path / "teacher", "net=cnn5")
    config = load_config(None, ["method=distil", f"train.teacher={folder}"])
    with pytest.raises(UserError, match="is not the one this run was started with; put that one back"):
        load_teacher(config, torch.device("cpu"), {"teacher": 64 * "0"})
