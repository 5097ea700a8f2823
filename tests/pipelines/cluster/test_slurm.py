"""slurm.sh for real: on a Slurm of three nodes, trainings that are cancelled and submitted again."""

import json
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from denoise.training.checkpoint import STATE
from tests.pipelines.slurm_helpers import Slurm, ready

ROOT = Path(__file__).parents[3]
SCRIPT = str(ROOT / "slurm.sh")
NODES = (1, 2, 3)
TRAIN = ["train", "net=cnn5", "ray.workers=3", "train.steps=120", "train.eval_every=120", "train.checkpoint_every=10"]
JOB_SECONDS = 600  # on a busy machine

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(not ready(), reason="needs root, iproute2, util-linux, and Debian's slurm-wlm and munge"),
]


@pytest.fixture
def slurm(tmp_path_factory, monkeypatch):
    """A Slurm of three nodes, whose home folder has no token yet."""
    folder = tmp_path_factory.mktemp("slurm")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with Slurm(len(NODES), folder) as slurm:
        yield slurm


class Job:
    """slurm.sh, submitted in a project with one processor a node."""

    def __init__(self, slurm: Slurm, project: Path, *words: str, **options: int) -> None:
        self.slurm, self.project = slurm, project
        given = [f"--{option.replace('_', '-')}={number}" for option, number in options.items()]
        submit = ["sbatch", "--parsable", "--nodes=3", "--cpus-per-task=1", *given, SCRIPT, *words]
        self.number = slurm.run(*submit, cwd=project).strip()

    def output(self) -> str:
        file = self.project / f"slurm-{self.number}.out"
        return file.read_text() if file.exists() else ""

    def state(self) -> str:
        return self.slurm.job(self.number)["JobState"]

    def cancel(self, *options: str) -> None:
        self.slurm.run("scancel", *options, self.number)

    def wait_until(self, condition) -> None:
        """Wait for something that happens while the job runs."""
        deadline = time.monotonic() + JOB_SECONDS
        while not condition():
            assert self.state() in ("PENDING", "RUNNING"), self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.2)

    def end(self) -> tuple[str, str]:
        """Wait for the end and return state and exit code, after a look at what is left: nothing."""
        deadline = time.monotonic() + JOB_SECONDS
        while self.state() in ("PENDING", "RUNNING", "COMPLETING"):
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.2)
        while left := [*self._folders(), *self._processes()]:
            assert time.monotonic() < deadline, (left, self.output())
            time.sleep(0.2)
        facts = self.slurm.job(self.number)
        return facts["JobState"], facts["ExitCode"]

    def _folders(self) -> list[Path]:
        return list(Path("/tmp").glob(f"denoise-ray-{self.number}-*"))

    def _processes(self) -> list[str]:
        """Return what runs on the nodes for this job."""
        found = []
        for pid in (pid for node in NODES for pid in self.slurm.pids(node)):
            try:
                process = psutil.Process(pid)
                if process.environ().get("SLURM_JOB_ID") == self.number:
                    found.append(" ".join(process.cmdline()))
            except psutil.Error:
                continue
        return found


def checkpoints(project: Path, name: str) -> list[Path]:
    """Return the complete checkpoints of a run, the oldest first."""
    return sorted(path.parent for path in project.glob(f"runs/ray/{name}/checkpoints/step-*/manifest.json"))


def samples_and_weights(project: Path, name: str) -> tuple[str, torch.Tensor]:
    """Return the digest of the samples that a run has seen, and all weights of its net."""
    newest = checkpoints(project, name)[-1]
    weights = load_file(newest / "net.safetensors")
    flat = torch.cat([weights[key].flatten() for key in sorted(weights)])
    return json.loads((newest / STATE).read_text())["samples"], flat


def test_jobs_share_nodes_and_one_that_was_cancelled_goes_on_when_it_is_submitted_again(slurm, project):
    whole = Job(slurm, project, *TRAIN, "--name=whole")
    check = Job(slurm, project, "cluster", "check", "ray.workers=3", gpus_per_node=1)
    check.wait_until(lambda: whole.state() == check.state() == "RUNNING")
    assert whole.end() == ("COMPLETED", "0:0"), whole.output()
    addresses = ", ".join(slurm.address(node) for node in NODES)
    assert f"workers: 3, on {addresses}\n" in whole.output()
    assert (project / "runs" / "whole" / "model").is_dir()
    check_findings(check, addresses)
    token = slurm.folder / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.read_text() not in whole.output() + check.output()
    interrupt_and_resume(slurm, project)
    samples, weights = samples_and_weights(project, "whole")
    samples_again, weights_again = samples_and_weights(project, "again")
    assert samples_again == samples
    torch.testing.assert_close(weights_again, weights, atol=1e-6, rtol=0)  # averages over three hosts are rounded


def check_findings(check: Job, addresses: str) -> None:
    """All nodes have joined a cluster that wants a token, with the GPUs of the job, which are only Slurm's."""
    assert check.end() == ("FAILED", "1:0"), check.output()
    assert f"3 answer: {addresses}\n" in check.output()
    assert "rejects calls without the token" in check.output()
    assert f"{addresses}: Ray offers 1 GPUs" in check.output()


def interrupt_and_resume(slurm: Slurm, project: Path) -> None:
    """The same job three times: ended as the time limit does, which saves a checkpoint; cancelled; to its end."""
    again = [*TRAIN, "--name=again"]
    first = Job(slurm, project, *again)
    first.wait_until(lambda: checkpoints(project, "again"))
    first.cancel("--batch", "--signal=TERM")
    assert first.end() == ("FAILED", "143:0"), first.output()
    saved = checkpoints(project, "again")[-1].name
    second = Job(slurm, project, *again)
    second.wait_until(lambda: checkpoints(project, "again")[-1].name > saved)
    second.cancel()
    assert second.end()[0] == "CANCELLED"
    assert f"resuming from {saved}" in second.output()
    third = Job(slurm, project, *again)
    assert third.end() == ("COMPLETED", "0:0"), third.output()
    assert "resuming from step-" in third.output()
