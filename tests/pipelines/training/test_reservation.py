"""What a run holds of a cluster is free again however the run ends: Ray Train's own cleaner is not started."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from tests.pipelines.one_host import OneHost

pytestmark = pytest.mark.slow

LONG = ["ray.workers=1", "train.steps=100000", "train.eval_every=100000", "train.checkpoint_every=100000"]
HELD = """
import ray
from ray.util import placement_group_table
ray.init(address="auto", logging_level="ERROR", log_to_driver=False)
states = [group["state"] for group in placement_group_table().values()]
print(sum(state != "REMOVED" for state in states), len(states))
"""


def held(host: OneHost) -> list[int]:
    """Return how many reservations the cluster has, and how many it has had."""
    return [int(number) for number in host.run(sys.executable, "-c", HELD, **host.variables).stdout.split()]


def training(host, denoise, project):
    """Start a run on the cluster and return its driver once it trains."""
    driver = subprocess.Popen(
        [*denoise, "train", "--json", "net=cnn5", "train.log_every=1", *LONG],
        env={**os.environ, **host.variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 200
    while not (rows := [file for file in project.glob("runs/ray/*/journal/metrics.jsonl") if file.stat().st_size]):
        assert driver.poll() is None, driver.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    rows[0].unlink()  # the next run has the same name
    return driver


def test_nothing_is_held_after_the_driver_or_the_controller_was_killed(project, denoise, tmp_path):
    with OneHost(tmp_path) as host:
        driver = training(host, denoise, project)
        assert held(host) == [1, 1]
        driver.kill()
        driver.communicate()
        deadline = time.monotonic() + 60
        while held(host)[0]:
            assert time.monotonic() < deadline
        driver = training(host, denoise, project)
        family = psutil.Process(host.process.pid).children(recursive=True)
        (controller,) = [process for process in family if "ray::TrainController" in " ".join(process.cmdline())]
        controller.kill()
        _, err = driver.communicate(timeout=120)
        assert driver.returncode == 1, err
        assert "failed for good" in err
        while held(host)[0]:
            assert time.monotonic() < deadline + 180
        assert held(host)[1] >= 1
