"""The study tells the truth about every trial, whoever ran it and however that ended."""

import math
import subprocess
import sys
import time

import optuna
import pytest

from denoise.errors import UserError
from pipelines.tracking.owner import this_process
from pipelines.tuning import lease as tune_claim
from pipelines.tuning.lease import DRIVER, SEEN, SILENT_SECONDS
from pipelines.tuning.optuna_objects import open_storage
from pipelines.tuning.space import Dimension, Sweep, changed
from pipelines.tuning.study import REASON, Study, known_sweep, list_sweeps
from tests.pipelines.postgres_helpers import Postgres

SPACE = {
    "train.lr": Dimension(float=(1e-5, 1e-3), log=True),
    "train.batch_size": Dimension(choice=(2, 4)),
    "net.depth": Dimension(int=(1, 9)),
}
SWEEP = Sweep("a test", SPACE, trials=6, evaluations=4)
FIGURES = {"0": {"val_psnr": 30.0}}


@pytest.fixture(autouse=True)
def no_rival(monkeypatch):
    """Begin at once: nobody else knows of these studies."""
    monkeypatch.setattr(tune_claim, "RIVAL_SECONDS", 0.0)


@pytest.fixture(scope="module")
def postgres():
    with Postgres("127.0.0.1") as server:
        yield server


@pytest.fixture(params=["sqlite:///{}/optuna.db", "journal:{}/sweeps.log", "postgresql"])
def address(request, tmp_path):
    if request.param == "postgresql":
        return request.getfixturevalue("postgres").new()
    return request.param.format(tmp_path)


def study_of(address, sweep=SWEEP, name="sweep", **identity):
    return Study(address, name, sweep, {"sweep": {"trials": sweep.trials}, **identity})


def states(study):
    return [trial.state.name for trial in study.trials()]


def test_every_end_is_what_it_was(address):
    study = study_of(address)
    asked = [study.ask() for _ in range(5)]
    assert [one.number for one in asked] == [0, 1, 2, 3, 4]
    study.complete(0, FIGURES, 100)
    study.record_validation(1, 1, 12.5, 10.0)
    study.prune(1)
    study.fail(2, "its loss is not finite")
    study.complete(3, {"0": {"val_psnr": math.nan}}, 100)
    study.complete(4, {"0": {"loss": 1.0}}, 100)
    assert states(study) == ["COMPLETE", "PRUNED", "FAIL", "FAIL", "FAIL"]
    pruned, failed, nan, unmeasured = study.trials()[1:]
    assert pruned.value == 12.5  # the last known value
    assert failed.user_attrs[REASON] == "its loss is not finite"
    assert "not a number" in nan.user_attrs[REASON]
    assert "noisy alone" in unmeasured.user_attrs[REASON]
    assert study.best().number == 0
    assert study.remaining() == 1


def test_several_seeds_count_by_their_mean(tmp_path):
    study = study_of(f"sqlite:///{tmp_path}/optuna.db")
    study.ask()
    study.complete(0, {"0": {"val_psnr": 30.0}, "1": {"val_psnr": 31.0}}, 100)
    assert study.trials()[0].values == [30.5]


def test_two_objectives_with_the_seconds_of_a_training(tmp_path):
    sweep = changed(SWEEP, {"objectives": ["val_psnr", "seconds"], "sampler": "nsga2"})
    study = study_of(f"sqlite:///{tmp_path}/optuna.db", sweep)
    study.ask()
    for rung, rate in ((1, 40.0), (2, 60.0)):
        study.record_validation(0, rung, 20.0, rate)
    study.complete(0, FIGURES, 1000)
    assert study.trials()[0].values == [30.0, 20.0]
    assert [direction.name for direction in study.study.directions] == ["MAXIMIZE", "MINIMIZE"]


def begin_and_die(address):
    code = f"""
import os, signal
from tests.pipelines.test_tune_study import study_of
study = study_of({address!r})
for number in range(3):
    study.ask()
study.note(1, 2, 20.0, 1.0)
study.complete(0, {{"0": {{"val_psnr": 30.0}}}}, 1)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9


def test_what_a_dead_process_left_running_goes_on_before_anything_new(address):
    begin_and_die(address)
    study = study_of(address)
    assert states(study) == ["COMPLETE", "RUNNING", "RUNNING"]
    before = [trial.params for trial in study.trials()]
    assert study.requeue() == 2
    assert study.remaining() == 5
    resumed = [study.ask() for _ in range(2)]
    assert [(one.number, one.params) for one in resumed] == [(1, before[1]), (2, before[2])]
    assert study.trials()[1].intermediate_values == {2: 20.0}
    rest = []
    while asked := study.ask():
        rest.append(asked.number)
    assert rest == [3, 4, 5]  # the exact budget


def test_an_interrupted_sweep_asks_what_an_unbroken_one_asks(tmp_path):
    unbroken = study_of(f"sqlite:///{tmp_path}/one.db")
    wanted = [unbroken.ask().params for _ in range(6)]
    found = []
    for _ in range(3):  # every time another object, as another process has
        study = study_of(f"sqlite:///{tmp_path}/two.db")
        for _ in range(2):
            asked = study.ask()
            study.complete(asked.number, FIGURES, 1)
            found.append(asked.params)
    assert found == wanted
    assert len({tuple(params.values()) for params in found}) == 6


def test_another_space_under_the_same_name_is_refused(address):
    study_of(address, config={"train": {"steps": 3}})
    with pytest.raises(UserError, match=r"config.train.steps \(3, now 4\).* --name"):
        study_of(address, config={"train": {"steps": 4}})
    study_of(address, name="other", config={"train": {"steps": 4}})
    assert [row["name"] for row in list_sweeps(address)] == ["sweep", "other"]


def test_of_two_processes_at_the_same_moment_one_goes_on(address, monkeypatch):
    """Another one has found the study free, too, and notes that it drives it after this one has."""
    study = study_of(address)
    monkeypatch.setattr(tune_claim.time, "sleep", lambda _: study.study.set_user_attr(DRIVER, "other-host 7 1.0"))
    with pytest.raises(UserError, match="being run by another process .other-host 7"):
        study.lease.take()


def test_two_processes_at_one_sweep_are_refused(address):
    sleeper = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"from {__name__} import study_of; study_of({address!r}); print(1, flush=True); input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert sleeper.stdout.readline()
    with pytest.raises(UserError, match="another process"):
        study_of(address)
    sleeper.communicate(b"\n")
    study_of(address)


def test_a_driver_on_another_machine_is_refused_until_it_has_been_silent(tmp_path):
    address = f"sqlite:///{tmp_path}/optuna.db"
    study = study_of(address).study
    study.set_user_attr(DRIVER, "another-machine 1 1.0")
    study.set_user_attr(SEEN, time.time() - SILENT_SECONDS / 2)
    with pytest.raises(UserError, match="another-machine"):
        study_of(address)
    study.set_user_attr(SEEN, time.time() - SILENT_SECONDS * 2)
    study_of(address)
    assert study.user_attrs[DRIVER] == this_process()
    assert study.user_attrs[SEEN] == pytest.approx(time.time(), abs=SILENT_SECONDS / 2)


def test_an_unknown_sweep_and_storage_are_told(tmp_path):
    address = f"sqlite:///{tmp_path}/optuna.db"
    study_of(address, name="n2v-12345678")
    with pytest.raises(UserError, match="did you mean n2v-12345678"):
        known_sweep(address, "n2v-12345679")
    with pytest.raises(UserError, match=r"cannot be opened .* tune\.storage"):
        open_storage("nonsense://host")


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "cmaes", "grid", "nsga2"])
def test_every_sampler_fills_the_budget(sampler, tmp_path):
    space = {"train.batch_size": Dimension(choice=(2, 4, 8)), "method.loss_name": Dimension(choice=("l1", "l2"))}
    if sampler in ("gp", "cmaes"):
        space["train.lr"] = SPACE["train.lr"]
    study = study_of(f"sqlite:///{tmp_path}/optuna.db", Sweep("t", space, trials=6, sampler=sampler))
    while asked := study.ask():
        study.complete(asked.number, {"0": {"val_psnr": float(asked.params["train.batch_size"])}}, 1)
    assert states(study) == ["COMPLETE"] * 6
    if sampler == "grid":
        assert len({tuple(trial.params.values()) for trial in study.trials()}) == 6


@pytest.mark.parametrize("pruner", ["asha", "hyperband", "median"])
def test_every_pruner_stops_the_worst_and_spares_the_best(pruner, tmp_path):
    study = study_of(
        f"sqlite:///{tmp_path}/optuna.db", Sweep("t", SPACE, trials=12, pruner=pruner, evaluations=8, reduction=2)
    )
    stopped = {}
    for quality in (30.0, 29.0, 28.0, 27.0, 26.0, 31.0, 10.0, 32.0):
        number = study.ask().number
        for rung in range(1, 9):
            if study.record_validation(number, rung, quality - 1 / rung, 1.0):
                study.prune(number)
                stopped[quality] = rung
                break
        else:
            study.complete(number, {"0": {"val_psnr": quality}}, 1)
    assert 10.0 in stopped
    assert not {30.0, 31.0, 32.0} & set(stopped)


def test_nothing_is_said_by_optuna(tmp_path, capfd):
    study = study_of(f"sqlite:///{tmp_path}/optuna.db")
    study.ask()
    study.complete(0, FIGURES, 1)
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == optuna.logging.WARNING


def test_asking_for_sweeps_makes_no_storage(tmp_path):
    for address in (f"sqlite:///{tmp_path}/optuna.db", f"journal:{tmp_path}/sweeps.log"):
        assert list_sweeps(address) == []
    assert list(tmp_path.iterdir()) == []
