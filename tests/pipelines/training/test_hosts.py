"""Training on Ray clusters of several hosts, which fail, are taken away with notice, and join."""

import json
import subprocess
from pathlib import Path

import pytest

from denoise.training.checkpoint import STATE
from tests.pipelines.hosts import Hosts, possible
from tests.pipelines.training.test_on_ray import checkpoints, journaled, runs_of, start, wait_for

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(not possible(), reason="network namespaces need root and the command ip (iproute2)"),
]

EVERY = ["train.log_every=5", "train.checkpoint_every=20", "train.crop=64", "net=cnn5"]


def drive(hosts: Hosts, denoise, project: Path, *overrides: str) -> "subprocess.Popen[str]":
    """Start training from the head of a cluster."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": project}
    return hosts.start(1, *denoise, "train", "--json", "ray.min_workers=1", *EVERY, *overrides, **pipes)


def steps(count: int) -> list[str]:
    return [f"train.steps={count}", f"train.eval_every={count}"]


def wait_for_success(driver: "subprocess.Popen[str]") -> str:
    """Wait for a command that succeeds and return its standard error."""
    _, err = driver.communicate(timeout=400)
    assert driver.returncode == 0, err
    return err


def check_one_run(project: Path, denoise, count: int) -> None:
    """Check that there is one finished run with each step once, and that it saw the samples of an undisturbed run."""
    client, (run,) = runs_of(project)
    assert run.info.status == "FINISHED"
    points = client.get_metric_history(run.info.run_id, "loss")
    assert sorted(point.step for point in points) == list(range(5, count + 1, 5))
    wait_for_success(start(denoise, "--local", *EVERY, *steps(count), "train.crop=16", "--name=alone"))
    (checkpoint,) = project.glob(f"runs/ray/*/checkpoints/step-{count:08d}")
    assert samples(checkpoint) == samples(project / f"runs/alone/checkpoints/step-{count:08d}")


def samples(checkpoint: Path) -> str:
    """Return the digest of all samples that a checkpoint was trained on."""
    return json.loads((checkpoint / STATE).read_text())["samples"]


def test_training_continues_without_a_host_that_fails_and_with_one_that_joins(project, denoise, tmp_path_factory):
    with Hosts(3, tmp_path_factory.mktemp("hosts")) as hosts:
        driver = drive(hosts, denoise, project, *steps(900))
        wait_for(lambda: len(checkpoints(project)) > 1 or driver.poll() is not None)
        hosts.kill(3)
        newest = checkpoints(project)[-1]
        wait_for(lambda: checkpoints(project)[-1] > newest or driver.poll() is not None)
        hosts.join()
        err = wait_for_success(driver)
        workers = [line.partition("workers: ")[2] for line in err.splitlines() if "workers: " in line]
        address = hosts.address
        assert workers == [
            f"2, on {address(2)}, {address(3)}",
            f"1, on {address(2)}",
            f"2, on {address(2)}, {address(4)}",
        ]
        assert err.count("resuming from step-") == 2
    check_one_run(project, denoise, 900)


def test_a_run_without_room_says_so_and_continues_when_a_host_joins(project, denoise, tmp_path_factory):
    with Hosts(3, tmp_path_factory.mktemp("hosts")) as hosts:
        driver = drive(hosts, denoise, project, *steps(200), "ray.min_workers=null")
        wait_for(lambda: len(checkpoints(project)) > 1 or driver.poll() is not None)
        hosts.kill(3)
        err = ""
        while "waits, as the cluster has room for 1 of 2 workers" not in err:
            line = driver.stderr.readline()
            assert line, err
            err += line
        hosts.join()
        err = wait_for_success(driver)
        assert f"workers: 2, on {hosts.address(2)}, {hosts.address(4)}" in err
        assert "resuming from step-" in err
    check_one_run(project, denoise, 200)


def test_a_notice_that_a_host_will_be_taken_away_saves_a_checkpoint_at_once(project, denoise, tmp_path_factory):
    with Hosts(3, tmp_path_factory.mktemp("hosts")) as hosts:
        driver = drive(hosts, denoise, project, *steps(600), "train.checkpoint_every=600")
        wait_for(lambda: journaled(project) or driver.poll() is not None)
        hosts.drain(3, seconds=60)
        wait_for(lambda: checkpoints(project) or driver.poll() is not None)
        (saved,) = checkpoints(project)
        assert 0 < int(saved.removeprefix("step-")) < 600
        hosts.kill(3)
        err = wait_for_success(driver)
        assert f"resuming from {saved}" in err
    check_one_run(project, denoise, 600)


def test_the_same_command_on_another_cluster_resumes_a_run_whose_head_has_failed(project, denoise, tmp_path_factory):
    """The old workers outlive their head and driver for a while: they must not damage what the new ones write."""
    with Hosts(3, tmp_path_factory.mktemp("hosts")) as hosts, Hosts(3, tmp_path_factory.mktemp("others")) as others:
        driver = drive(hosts, denoise, project, *steps(400))
        wait_for(lambda: len(checkpoints(project)) > 1 or driver.poll() is not None)
        hosts.kill(1)
        driver.communicate()
        err = wait_for_success(drive(others, denoise, project, *steps(400)))
        assert "resuming from step-" in err
    check_one_run(project, denoise, 400)
