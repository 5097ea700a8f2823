"""ray_cluster_local.yaml for real: `ray up` over ssh on three machines, a sweep sent there, `ray down`."""

import json
import shutil
import time

import optuna
import pytest
import yaml
from optuna.storages.journal import JournalFileBackend

from tests.pipelines.conftest import PARAMS
from tests.pipelines.machines import HOME, ROOT, SHARED, Machines, ready

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not ready(), reason="machines need root, iproute2, openssh-server, rsync and util-linux"),
]

HEAD, WORKERS, LAPTOP = 1, (2, 3), 4
FILE = "ray_cluster_local.yaml"
WHERE = (
    f"ray.workers=2 ray.storage={SHARED}/runs data.root={SHARED}/data tune.storage=journal:{SHARED}/sweeps.log "
    f"tracking.uri=sqlite:///{HOME}/mlflow.db"
)
GONE_SECONDS = 180  # a minute until the workers notice that there is no head any more, and time to stop
SWEEP = {
    "title": "a test",
    "config": {"net": "cnn5", "train": {"crop": 32}, "ray": {"workers": 1}},
    "space": {"train.lr": {"choice": [1e-3, 3e-3]}},
    "trials": 2,
    "evaluations": 2,
    "images": 96,
}


@pytest.fixture
def machines(tmp_path_factory, small_shards):
    """A laptop with this repository, three machines that it may log in to, and a folder that these share."""
    with Machines(4, tmp_path_factory.mktemp("machines")) as machines:
        for split in ("train", "val"):
            shutil.copytree(small_shards, machines.shared / "data" / "shards" / split / "small")
        here = machines.home(LAPTOP) / "denoise"
        here.mkdir()
        for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "denoise", "pipelines"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, here / name)
        (here / "params.yaml").write_text(PARAMS)
        (here / "mine.yaml").write_text(yaml.safe_dump(SWEEP))
        (here / FILE).write_text(filled_in(machines, (ROOT / FILE).read_text()))
        yield machines


def filled_in(machines: Machines, template: str) -> str:
    """Change in the template what its comments say has to be changed."""
    for number in (HEAD, *WORKERS):
        template = template.replace(f"192.0.2.{number}", machines.address(number))
    return template.replace("ssh_user: denoise", "ssh_user: root")


def at_laptop(machines: Machines, command: str) -> str:
    return machines.run(LAPTOP, f"export RAY_AUTH_MODE=token; {command}", HOME / "denoise", seconds=600)


def processes(machines: Machines, number: int) -> list[str]:
    """Return what runs on a machine besides sshd and its sessions."""
    lines = machines.run(number, "ps -e -o args=").splitlines()
    return [line for line in lines if not line.startswith(("sshd", "/usr/sbin/sshd", "ps ", "bash -c ps"))]


def wait_until(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not (done := condition()) and time.monotonic() < deadline:
        time.sleep(1)
    assert done


def findings(machines: Machines) -> dict[str, str]:
    """Return what `denoise cluster check` says on each subject, run as a job on the head."""
    out = at_laptop(machines, f"denoise submit -- cluster check {WHERE}")
    lines = [line for line in out.splitlines() if line.startswith(("ok ", "warning ", "problem "))]
    return {line.split()[1]: line for line in lines}


def autoscaler_says(machines: Machines, number: int) -> dict[str, dict]:
    """Return what Ray's launcher on a machine has written about the machines, by address."""
    return json.loads((machines.disk(number) / "tmp" / "ray" / "cluster-denoise-local.state").read_text())


def all_workers_started(machines: Machines) -> bool:
    said = autoscaler_says(machines, HEAD)
    return all(said[machines.address(n)]["tags"].get("ray-node-status") == "up-to-date" for n in WORKERS)


def test_own_machines_become_a_cluster_that_trains_a_sweep_and_nothing_of_it_is_left(machines):
    at_laptop(machines, "ray get-auth-token --generate && chmod 600 ~/.ray/auth_token")
    at_laptop(machines, f"ray up --yes {FILE}")
    token = (machines.home(LAPTOP) / ".ray" / "auth_token").read_text()
    assert token not in (machines.home(LAPTOP) / "denoise" / FILE).read_text()
    tunnel = machines.on(LAPTOP, f"exec ray dashboard {FILE}", HOME / "denoise")
    try:
        check_cluster(machines, token)
        run_sweep(machines)
    finally:
        machines.stop(tunnel)
    at_laptop(machines, f"ray down --yes {FILE}")
    for number in (HEAD, *WORKERS):
        wait_until(lambda number=number: not processes(machines, number), GONE_SECONDS)
    check_rest(machines)


def check_cluster(machines: Machines, token: str) -> None:
    """All three machines are in the cluster, which requires the token; only the user can read it."""
    wait_until(lambda: all_workers_started(machines), 120)
    found = findings(machines)
    assert not [line for line in found.values() if line.startswith("problem")]
    assert all(machines.address(number) in found["hosts"] for number in (HEAD, *WORKERS))
    assert "rejects calls without the token" in found["token"]
    for number in (HEAD, *WORKERS):
        file = machines.home(number) / ".ray" / "auth_token"
        assert file.read_text() == token
        assert file.stat().st_mode & 0o777 == 0o600


def run_sweep(machines: Machines) -> None:
    """A sweep finishes, with its study and checkpoints in the shared folder."""
    out = at_laptop(machines, f"denoise submit -- tune mine.yaml --name=mine {WHERE}")
    assert "denoise-gauss25 version 1 @challenger" in out
    backend = JournalFileBackend(str(machines.shared / "sweeps.log"))
    study = optuna.load_study(study_name="mine", storage=optuna.storages.JournalStorage(backend))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * SWEEP["trials"]
    assert list((machines.shared / "runs").glob("mine-*/checkpoints/step-*/net.safetensors"))


def check_rest(machines: Machines) -> None:
    """What stays is what docs/cluster.md says: files, of which nothing is locked and nothing is said to run."""
    assert {machine["state"] for machine in autoscaler_says(machines, LAPTOP).values()} == {"terminated"}
    machines.run(LAPTOP, "flock --nonblock /tmp/ray/cluster-denoise-local.lock true")
    assert sorted(file.name for file in (machines.disk(LAPTOP) / "tmp" / "ray").iterdir()) == [
        "cluster-denoise-local.lock",
        "cluster-denoise-local.state",
    ]
    for number in (HEAD, *WORKERS):
        key = machines.home(number) / "ray_bootstrap_key.pem"
        assert key.exists() == (number == HEAD)
        assert number != HEAD or key.stat().st_mode & 0o777 == 0o600
