"""The study records the right state of every trial, whoever ran it and however it ended."""

import math
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace

import optuna
import pytest

from denoise.errors import UserError
from pipelines.tracking.owner import this_process
from pipelines.tuning import lease
from pipelines.tuning.lease import EXPIRY_SECONDS, HOLDER, RENEWED
from pipelines.tuning.optuna_objects import open_storage
from pipelines.tuning.space import Dimension, Sweep, with_options
from pipelines.tuning.study import REASON, Study, list_sweeps, stored_identity
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
    """Acquire the lease at once: no other process knows of these studies."""
    monkeypatch.setattr(lease, "RACE_SECONDS", 0.0)
    monkeypatch.setattr(lease, "WATCH_SECONDS", 0.2)


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


def test_every_trial_has_the_state_it_ended_in(address):
    study = study_of(address)
    assert [study.ask().number for _ in range(5)] == [0, 1, 2, 3, 4]
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
    assert "noisy images only" in unmeasured.user_attrs[REASON]
    assert study.best().number == 0
    assert study.remaining() == 1


def test_several_seeds_count_by_their_mean(tmp_path):
    study = study_of(f"sqlite:///{tmp_path}/optuna.db")
    study.ask()
    study.complete(0, {"0": {"val_psnr": 30.0}, "1": {"val_psnr": 31.0}}, 100)
    assert study.trials()[0].values == [30.5]


def test_two_objectives_with_the_seconds_of_a_training(tmp_path):
    sweep = with_options(SWEEP, {"objectives": ["val_psnr", "seconds"], "sampler": "nsga2"})
    study = study_of(f"sqlite:///{tmp_path}/optuna.db", sweep)
    study.ask()
    for rung, rate in ((1, 40.0), (2, 60.0)):
        study.record_validation(0, rung, 20.0, rate)
    study.complete(0, FIGURES, 1000)
    assert study.trials()[0].values == [30.0, 20.0]
    assert [direction.name for direction in study.study.directions] == ["MAXIMIZE", "MINIMIZE"]


def run_until_killed(address):
    code = f"""
import os, signal
from tests.pipelines.tuning.test_study import study_of
study = study_of({address!r})
for number in range(3):
    study.ask()
study.record_validation(1, 2, 20.0, 1.0)
study.complete(0, {{"0": {{"val_psnr": 30.0}}}}, 1)
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9


def test_trials_of_a_dead_process_are_resumed_before_new_ones_begin(address):
    run_until_killed(address)
    study = study_of(address)
    assert states(study) == ["COMPLETE", "RUNNING", "RUNNING"]
    before = [trial.params for trial in study.trials()]
    assert study.requeue() == 2
    assert study.remaining() == 5
    resumed = [study.ask() for _ in range(2)]
    assert [(trial.number, trial.params) for trial in resumed] == [(1, before[1]), (2, before[2])]
    assert study.trials()[1].intermediate_values == {2: 20.0}
    numbers = []
    while trial := study.ask():
        numbers.append(trial.number)
    assert numbers == [3, 4, 5]  # the exact budget


def test_an_interrupted_sweep_tries_the_same_parameters_as_an_uninterrupted_one(tmp_path):
    uninterrupted = study_of(f"sqlite:///{tmp_path}/one.db")
    expected = [uninterrupted.ask().params for _ in range(6)]
    tried = []
    for _ in range(3):  # a new object each time, as another process would have
        study = study_of(f"sqlite:///{tmp_path}/two.db")
        for _ in range(2):
            trial = study.ask()
            study.complete(trial.number, FIGURES, 1)
            tried.append(trial.params)
    assert tried == expected
    assert len({tuple(params.values()) for params in tried}) == 6


def test_another_space_under_the_same_name_is_refused(address):
    study_of(address, config={"train": {"steps": 3}})
    with pytest.raises(UserError, match=r"config.train.steps \(3, now 4\).* --name"):
        study_of(address, config={"train": {"steps": 4}})
    study_of(address, name="other", config={"train": {"steps": 4}})
    assert [row["name"] for row in list_sweeps(address)] == ["sweep", "other"]


def test_of_two_processes_at_the_same_moment_one_acquires_the_lease(address, monkeypatch):
    """The other one has found the study free, too, and writes its name after this one."""
    study = study_of(address)
    monkeypatch.setattr(lease.time, "sleep", lambda _: study.study.set_user_attr(HOLDER, "other-host 7 1.0"))
    with pytest.raises(UserError, match="being run by another process .other-host 7"):
        study.lease.acquire()


def test_a_second_process_at_one_sweep_is_refused(address):
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


def test_a_lease_of_another_machine_expires_when_it_is_not_renewed(tmp_path):
    address = f"sqlite:///{tmp_path}/optuna.db"
    study = study_of(address).study
    study.set_user_attr(HOLDER, "another-machine 1 1.0")
    study.set_user_attr(RENEWED, time.time() - EXPIRY_SECONDS / 2)
    with pytest.raises(UserError, match="another-machine"):
        study_of(address)
    study.set_user_attr(RENEWED, time.time() - EXPIRY_SECONDS * 2)
    study_of(address)
    assert study.user_attrs[HOLDER] == this_process()
    assert study.user_attrs[RENEWED] == pytest.approx(time.time(), abs=EXPIRY_SECONDS / 2)


def test_a_lease_that_is_renewed_by_another_clock_is_not_taken(tmp_path, monkeypatch):
    """A clock that jumped back, or a machine whose clock is wrong: whoever renews the lease keeps it."""
    address = f"sqlite:///{tmp_path}/optuna.db"
    monkeypatch.setattr(lease, "WATCH_SECONDS", 1.0)
    study, ended = study_of(address).study, threading.Event()
    study.set_user_attr(HOLDER, "another-machine 1 1.0")

    def renew() -> None:
        while not ended.wait(0.1):
            study.set_user_attr(RENEWED, time.time() - 3600)

    study.set_user_attr(RENEWED, time.time() - 3600)
    holder = threading.Thread(target=renew)
    holder.start()
    try:
        with pytest.raises(UserError, match="another-machine"):
            study_of(address)
    finally:
        ended.set()
        holder.join()


def test_an_unknown_sweep_or_storage_is_an_error_that_names_it(tmp_path):
    address = f"sqlite:///{tmp_path}/optuna.db"
    study_of(address, name="n2v-12345678")
    with pytest.raises(UserError, match="did you mean n2v-12345678"):
        stored_identity(address, "n2v-12345679")
    with pytest.raises(UserError, match=r"cannot be opened .* tune\.storage"):
        open_storage("nonsense://host")


def test_a_command_that_resumes_has_what_the_file_of_the_sweep_sets_but_no_password(address):
    config = {"ray": {"workers": 1}, "tracking": {"uri": "postgresql://me:secret@host/mlflow"}}
    sweep = replace(SWEEP, config=config)
    study_of(address, sweep)
    assert stored_identity(address, "sweep")["sweep"]["config"]["ray"] == {"workers": 1}
    assert "secret" not in str(stored_identity(address, "sweep"))
    assert study_of(address, sweep).remaining() == 6  # the same command still finds it


def test_a_storage_that_cannot_be_written_is_one_sentence(tmp_path):
    address = f"sqlite:///{tmp_path}/optuna.db?timeout=0.1"
    study_of(address)
    with closing(sqlite3.connect(tmp_path / "optuna.db")) as other:
        other.execute("BEGIN IMMEDIATE")  # others may read
        with pytest.raises(UserError, match=r"cannot be opened or written \(.*locked.*\); check tune\.storage"):
            study_of(address)


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp", "cmaes", "grid", "nsga2"])
def test_every_sampler_fills_the_budget(sampler, tmp_path):
    space = {"train.batch_size": Dimension(choice=(2, 4, 8)), "method.loss_name": Dimension(choice=("l1", "l2"))}
    if sampler in ("gp", "cmaes"):
        space["train.lr"] = SPACE["train.lr"]
    study = study_of(f"sqlite:///{tmp_path}/optuna.db", Sweep("t", space, trials=6, sampler=sampler))
    while trial := study.ask():
        study.complete(trial.number, {"0": {"val_psnr": float(trial.params["train.batch_size"])}}, 1)
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


def test_optuna_prints_nothing(tmp_path, capfd):
    study = study_of(f"sqlite:///{tmp_path}/optuna.db")
    study.ask()
    study.complete(0, FIGURES, 1)
    assert capfd.readouterr() == ("", "")
    assert optuna.logging.get_verbosity() == optuna.logging.WARNING


def test_listing_sweeps_creates_no_storage(tmp_path):
    for address in (f"sqlite:///{tmp_path}/optuna.db", f"journal:{tmp_path}/sweeps.log"):
        assert list_sweeps(address) == []
    assert list(tmp_path.iterdir()) == []
