"""Many small trainings on a real Ray, in processes that train one after another."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from denoise.config import load_config
from denoise.errors import UserError
from pipelines.tracking.journal import Journal
from pipelines.tracking.lifecycle import journal_folder
from pipelines.training.trial import MemoryFullError, _plain


def in_a_cluster(one_host, function):
    """Call a function of this file, connected to the cluster, in a process of its own; return what it returns."""
    code = f"import json; from {__name__} import connected, {function.__name__} as f; print(json.dumps(connected(f)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **one_host.variables, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def connected(function):
    from pipelines.cluster.connect import ray_cluster

    with ray_cluster(small()):
        return function()


def small(*overrides):
    """Return the configuration of a run with absolute addresses, as whoever runs others on a cluster must give it."""
    config = load_config(Path("params.yaml"), ["ray.workers=1", "net=cnn5", *overrides])
    folder = Path.cwd()
    return replace(
        config,
        data=replace(config.data, root=str(folder / "data")),
        ray=replace(config.ray, storage=str(folder / "runs" / "ray")),
        tracking=replace(config.tracking, uri=f"sqlite:///{folder}/mlflow.db"),
    )


def train_one(task, report):
    from pipelines.training.trial import train_trial

    name, config = task
    return train_trial(config, name, {"study": "three"}, lambda row: report({"step": row["step"]}), report.messages)


class Ends:
    """Keeps how tasks ended."""

    def __init__(self):
        self.ends, self.reports = {}, []

    def reported(self, number, report):
        self.reports.append(number)

    def ended(self, number, result, failure):
        self.ends[number] = [result, failure]


def train_three():
    from pipelines.cluster.workers import fit_to_cluster
    from pipelines.training.run_list import TaskList, run_each

    settings = {"first": small(), "wild": small("train.lr=1e30"), "again": small()}
    tasks = [(name, fit_to_cluster(config, side_by_side=True)) for name, config in settings.items()]
    listener = Ends()
    run_each(TaskList(tasks, train_one), listener, tasks[0][1], name="three", concurrency=1)
    assert {0, 2} <= set(listener.reports)
    names = list(settings)
    return {names[number]: end for number, end in listener.ends.items()}, [names[number] for number in listener.ends]


def test_runs_share_a_process_and_nothing_else(project, one_host):
    """One of them diverges: the next one, of the same settings as the first, has the same metrics to the last bit."""
    outcomes, ended = in_a_cluster(one_host, train_three)
    assert ended == list(outcomes) == ["first", "wild", "again"]
    (first, _), (wild, failure), (again, _) = outcomes.values()
    assert (wild, first) == ({}, again)
    assert "the loss is" in failure
    assert {"step", "loss", "val_psnr"} <= first.keys()
    journals = [Journal(journal_folder("runs/ray", name)) for name in outcomes]
    assert len({journal.run_spec().owner for journal in journals}) == 1
    assert [journal.final_status().status for journal in journals] == ["FINISHED", "FAILED", "FINISHED"]


def work(suggestion, report):
    """Leave a line that says who does it, and end as the number says."""
    number = suggestion["number"]
    with Path(suggestion["file"]).open("a") as file:
        file.write(f"{number} {os.getpid()}\n")
    if number == 0:
        raise UserError("its loss is not finite")
    if number == 1:
        raise MemoryFullError("out of memory")
    return {"metrics": {}}


def end_in_every_way():
    from pipelines.training.side_by_side import PlainSearcher, run_all

    class Three(PlainSearcher):
        trials, ends = [], {}

        def suggest(self, trial_id):
            self.trials.append(trial_id)
            return {"number": len(self.trials) - 1, "file": str(Path("lines").absolute())}

        def on_end(self, trial_id, end):
            self.ends.setdefault(self.trials.index(trial_id), end)

    run_all(work, Three(), small(), name="ends", count=3, concurrency=1)
    return Three.ends


def test_a_failure_is_not_tried_again_and_a_full_memory_costs_the_process_too(project, one_host):
    ends = in_a_cluster(one_host, end_in_every_way)
    assert ends == {"0": {"failed": "its loss is not finite"}, "1": {"failed": "out of memory"}, "2": {"metrics": {}}}
    numbers, pids = zip(*(line.split() for line in Path("lines").read_text().splitlines()), strict=True)
    assert numbers == ("0", "1", "2")
    assert pids[0] == pids[1] != pids[2]


def test_a_full_memory_is_told_from_other_failures():
    hidden = UserError("lower train.crop")
    hidden.__context__ = torch.OutOfMemoryError("CUDA out of memory")  # as after `raise ... from None`
    assert isinstance(_plain(hidden), MemoryFullError)
    assert str(_plain(hidden)) == "lower train.crop"
    assert isinstance(_plain(MemoryError()), MemoryFullError)
    assert not isinstance(_plain(UserError("the loss is nan")), MemoryFullError)
