"""Definitions of sweeps: what is valid, and the configurations that follow."""

import pytest

from denoise.config import Config, load_config
from denoise.errors import UsageError
from denoise.methods import METHODS, build_method, with_net
from denoise.noise import parse_noise
from pipelines.tuning.overrides import refuse_changes, refuse_ineffective, to_repeat
from pipelines.tuning.plan import _settled
from pipelines.tuning.space import (
    Dimension,
    Sweep,
    boundary_configs,
    check_sweep,
    from_identity,
    identity,
    load_sweep,
    names,
    sweep_name,
    trial_config,
    with_options,
)

pytestmark = pytest.mark.smoke

LR = {"train.lr": Dimension(float=(1e-5, 1e-3), log=True)}
SWEEP = Sweep("a test", LR, images=640, evaluations=4)


@pytest.mark.parametrize("name", names())
def test_every_installed_sweep_can_be_trained(name):
    sweep = load_sweep(name)
    base = load_config(None, [], sweep.config)
    for params in boundary_configs(sweep):
        config = trial_config(sweep, base, params, 0)
        assert config.train.steps == sweep.evaluations * config.train.eval_every
        build_method(config.method.name, config.method.fields, parse_noise(config.noise))


def methods_with_fields():
    return [name for name, method in METHODS.items() if method.trained and method.__dataclass_fields__]


@pytest.mark.parametrize("name", methods_with_fields())
def test_every_value_of_the_sweep_of_a_methods_own_fields_is_valid(name):
    sweep = load_sweep(name)
    assert all(key.startswith("method.") for key in sweep.space)
    noise = "gauss25" if "gauss" in (METHODS[name].families or ("gauss",)) else "poisson30"
    for params in boundary_configs(sweep):
        config = trial_config(sweep, load_config(None, [f"method={name}", f"noise={noise}"]), params, 0)
        build_method(name, config.method.fields, parse_noise(config.noise))


def test_the_search_of_the_ee559_report():
    sweep = load_sweep("ee559-random")
    lr, batch = sweep.space["train.lr"], sweep.space["train.batch_size"]
    assert lr.float == pytest.approx((10**-5, 10**-3.5))
    assert lr.log
    assert batch.choice == (2, 4, 8, 16, 32)
    assert (sweep.trials, sweep.sampler, sweep.pruner) == (20, "random", "none")


@pytest.mark.parametrize("batch", [2, 4, 32])
def test_a_trial_sees_as_many_images_whatever_its_batch(batch):
    config = trial_config(SWEEP, Config(), {"train.lr": 2e-5, "train.batch_size": batch}, 7)
    assert config.train.steps * batch == 640
    assert config.train.steps == 4 * config.train.eval_every
    assert (config.train.lr, config.seed) == (2e-5, 7)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        (Sweep("t", {}), "space is empty"),
        (Sweep("t", {"train.lr": Dimension()}), "exactly one of float, int and choice"),
        (Sweep("t", {"train.lr": Dimension(float=(1, 0.1))}), "from a lower to a higher"),
        (Sweep("t", {"train.lr": Dimension(float=(0, 0.1), log=True)}), "above 0"),
        (Sweep("t", LR, sampler="grid"), "should be a choice"),
        (Sweep("t", LR, objectives=("val_psnr", "seconds"), pruner="asha"), "pruner: none"),
        (Sweep("t", LR, objectives=("val_psnr", "seconds"), sampler="gp"), "use nsga2"),
    ],
)
def test_an_invalid_sweep_is_refused(sweep, message):
    with pytest.raises(UsageError, match=message):
        check_sweep(sweep)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ee559", "did you mean ee559-wide|did you mean ee559-random"),
        ("nowhere.yaml", "there is no file nowhere.yaml"),
        ("bm3d", "has no hyperparameters|needs no training"),
    ],
)
def test_an_unknown_sweep_is_refused(name, message):
    with pytest.raises(UsageError, match=message):
        load_sweep(name)


def test_a_sweep_is_read_from_a_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("title: mine\nspace: {train.lr: {float: [1e-5, 1e-3], log: true}}\ntrials: 3\n")
    sweep = load_sweep(str(file))
    assert sweep.space["train.lr"].float == (1e-5, 1e-3)
    file.write_text("title: mine\nspace: {}\ntrails: 3\n")
    with pytest.raises(UsageError, match="did you mean trials"):
        load_sweep(str(file))
    file.write_text("title: mine\ntrials: 3\nspace: {}\ntrials: 30\n")
    with pytest.raises(UsageError, match="has the key 'trials' twice, in lines 2 and 4; delete one"):
        load_sweep(str(file))


def test_options_replace_fields():
    sweep = with_options(SWEEP, {"trials": 5, "sampler": "tpe", "pruner": None})
    assert (sweep.trials, sweep.sampler, sweep.pruner, sweep.space) == (5, "tpe", "none", SWEEP.space)
    with pytest.raises(UsageError, match="sampler"):
        with_options(SWEEP, {"sampler": "tpee"})


def test_the_name_of_a_sweep_depends_on_what_decides_its_results_alone():
    name = sweep_name(SWEEP, Config(), "digest", "kind")
    assert name == sweep_name(SWEEP, load_config(None, ["ray.workers=7", "data.root=elsewhere"]), "digest", "kind")
    others = [
        sweep_name(with_options(SWEEP, {"trials": 3}), Config(), "digest", "kind"),
        sweep_name(SWEEP, load_config(None, ["train.steps=7"]), "digest", "kind"),
        sweep_name(SWEEP, Config(), "other images", "kind"),
    ]
    assert len({name, *others}) == 4


def test_a_sweep_is_restored_from_its_identity():
    known = identity(SWEEP, load_config(None, ["method=n2v", "method.mask_ratio=0.01"]), "digest")
    sweep, base = from_identity(known, load_config(None, ["ray.workers=1"]))
    assert (sweep.space, sweep.images, base.method.fields) == (SWEEP.space, 640, {"mask_ratio": 0.01})
    assert base.ray.workers == 1
    assert identity(sweep, base, "digest") == known


def test_a_sweep_is_the_same_with_auto_and_with_what_that_becomes():
    auto, given = (_settled(load_config(None, keys), SWEEP) for keys in ([], ["net=unet_n2n", "train.crop=64"]))
    assert identity(SWEEP, auto, "digest") == identity(SWEEP, given, "digest")


def test_every_trial_has_the_net_and_the_crop_of_its_own_method():
    sweep = Sweep("t", {"method": Dimension(choice=("n2n", "ssdn"))})
    base = _settled(load_config(None, []), sweep)
    configs = [with_net(trial_config(sweep, base, params, 0)) for params in boundary_configs(sweep)]
    assert [(config.net.name, config.train.crop_pixels) for config in configs] == [("unet_n2n", 64), ("unet_ssdn", 128)]


def test_a_command_that_resumes_repeats_what_the_study_does_not_keep():
    given = ["method=n2v", "train.crop=32", "data.train=own", "data.test=kodak", "data.root=x", "ray.workers=1"]
    assert to_repeat(given) == ["data.test=kodak", "data.root=x", "ray.workers=1"]
    refuse_changes(to_repeat(given))
    for override in set(given) - set(to_repeat(given)):
        with pytest.raises(UsageError, match=f"{override.split('=')[0]} cannot change"):
            refuse_changes([override])


@pytest.mark.parametrize(
    "key", ["seed", "train.steps", "train.eval_every", "train.log_every", "train.checkpoint_every"]
)
def test_what_a_sweep_decides_itself_can_neither_be_searched_nor_given(key):
    with pytest.raises(UsageError, match=f"space.{key} cannot be searched"):
        check_sweep(Sweep("t", {key: Dimension(int=(8, 80))}, images=640))
    with pytest.raises(UsageError, match=f"{key} cannot be given"):
        refuse_ineffective([f"{key}=8"], SWEEP, load_config(None, [f"{key}=8"]))


def test_overrides_that_count_are_taken():
    steps = with_options(SWEEP, {"evaluations": 5})
    by_steps = Sweep("t", LR, evaluations=5)
    refuse_ineffective(["train.crop=32", "data.train=own", "ray.workers=1"], steps, Config())
    config = load_config(None, ["train.steps=20"])
    refuse_ineffective(["train.steps=20"], by_steps, config)
    assert trial_config(by_steps, config, {"train.lr": 1e-4}, 0).train.steps == 20
    with pytest.raises(UsageError, match="give 20 or 25"):
        refuse_ineffective(["train.steps=21"], by_steps, load_config(None, ["train.steps=21"]))
    with pytest.raises(UsageError, match="val_loss is an objective"):
        refuse_ineffective(["train.val_loss=no"], Sweep("t", LR, objectives=("val_loss",)), Config())
    with pytest.raises(UsageError, match="net.depth cannot be given for this sweep: it is searched"):
        refuse_ineffective(["net.depth=3"], Sweep("t", {"net": Dimension(choice=("cnn5", "dncnn"))}), Config())
