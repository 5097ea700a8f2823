"""Messages between the driver of a run and its workers, without Ray."""

import subprocess
import sys

from denoise.training.fault_injection import parse_fault
from pipelines.training.channel import MessagesActor, RunChannel, RunMessages


def test_messages_and_validations_are_taken_once_and_the_latest_metrics_stay():
    run = RunMessages()
    run.put_message("workers: 2")
    run.put_metrics({"step": 2.0}, validated=True)
    run.put_metrics({"step": 3.0}, validated=False)
    assert run.take() == ({"step": 3.0}, ["workers: 2"], [{"step": 2.0}])
    assert run.take() == ({"step": 3.0}, [], [])


def test_the_first_reason_of_a_failure_stays():
    run = RunMessages()
    run.end("a shard is damaged", 0)
    run.end("", 7)
    assert run.ending() == ("a shard is damaged", 7)


def test_runs_do_not_get_each_others_messages_and_nothing_stays_of_one_that_was_dropped():
    actor, earlier, now = MessagesActor(), RunChannel(None).run, RunChannel(None).run
    actor.call(earlier, "end", "a shard is damaged", 0)
    actor.call(now, "end", "", 7)
    assert [actor.call(run, "ending") for run in (earlier, now)] == [("a shard is damaged", 0), ("", 7)]
    actor.drop(earlier)
    actor.call(now, "put_metrics", {"step": 8.0}, validated=True)
    assert [actor.call(run, "take") for run in (earlier, now)] == [({}, [], []), ({"step": 8.0}, [], [{"step": 8.0}])]
    assert actor.call(earlier, "ending") == ("", 0)


def test_a_fault_is_injected_for_the_first_time_once_a_run():
    actor, fault = MessagesActor(), parse_fault("kill:rank=1,step=37")
    assert [actor.call(run, "first_time", fault) for run in ("one", "one", "two")] == [True, False, True]


def test_the_actor_imports_next_to_nothing():
    code = "import sys, pipelines.training.channel; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "pydantic", "ray", "mlflow", "optuna", "rich", "denoise.config"} & set(modules)
