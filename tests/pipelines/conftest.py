"""A small project to run commands in."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from pipelines.storage import base as storage
from pipelines.tracking.client import set_environment
from tests.groups import GROUPS, group_of
from tests.pipelines.fork_server import ForkServer
from tests.pipelines.mirror_helpers import Site, copy_some
from tests.pipelines.mlflow_helpers import Server, shared_uri
from tests.pipelines.mlflow_outage import ServerOfATest
from tests.pipelines.one_host import OneHost
from tests.pipelines.s3_helpers import S3Server

set_environment()  # a test may import mlflow before any code of ours does

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PARAMS = """\
data: {train: [small], val: [small], test: []}
train:
  steps: 12
  crop: 32
  log_every: 2
  eval_every: 6
  checkpoint_every: 6
  precision: fp32
ray: {workers: 2}
"""


COMMANDS = {"denoise", "denoise_fork", "denoise_at_a_terminal"}


@pytest.hookimpl(tryfirst=True)  # pytest-randomly has shuffled already
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the groups, and what starts commands, which take longest: no worker is idle at the end."""
    groups = [*dict.fromkeys(GROUPS.values())]

    def turn(item: pytest.Item) -> int:
        group = group_of(item.nodeid)
        return groups.index(group) if group else len(groups) + (not COMMANDS & set(getattr(item, "fixturenames", ())))

    items.sort(key=turn)


@pytest.fixture
def project(
    tmp_path: Path, small_shards: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with params.yaml and shards of real images, made the current one, and a cache of its own."""
    monkeypatch.setenv("DENOISE_CACHE", str(tmp_path_factory.mktemp("cache")))
    for split in ("train", "val"):
        shutil.copytree(small_shards, tmp_path / "data" / "shards" / split / "small")
    (tmp_path / "params.yaml").write_text(PARAMS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def denoise() -> list[str]:
    """The command line, as the start of a list for subprocess."""
    return [sys.executable, "-m", "pipelines.cli"]


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """What gives forks of a process that has imported everything."""
    with ForkServer() as server:
        yield server


@pytest.fixture(scope="session")
def denoise_fork(fork_server: ForkServer) -> list[str]:
    """The command line, as the start of a list for subprocess, where the start itself is not the subject."""
    return fork_server.command


@pytest.fixture(scope="session")
def denoise_at_a_terminal() -> list[str]:
    """The command line of a process that hears Ctrl-C, whatever the tests run in.

    A test run in the background of a script inherits that Ctrl-C is ignored; a terminal's programs do not.
    """
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    return [sys.executable, "-c", f"{heard}; from pipelines.cli.app import main; main()"]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], Site]]:
    """Serve a folder until the test ends; downloads are tried again without waiting, and past any proxy."""
    monkeypatch.setattr(storage, "FIRST_PAUSE", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    sites: list[Site] = []

    def start(folder: Path) -> Site:
        sites.append(Site(folder))
        return sites[-1]

    yield start
    for site in sites:
        site.stop()


@pytest.fixture
def small_mirror(mirror: Path, tmp_path: Path) -> Path:
    """A mirror that may be damaged."""
    folder = tmp_path / "mirror"
    copy_some(mirror, folder)
    return folder


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """A server of the S3 protocol that all tests share."""
    server = S3Server()
    server.start()
    yield server
    server.kill()


@pytest.fixture
def s3(s3_server: S3Server) -> S3Server:
    """A server of the S3 protocol which holds an empty bucket called ``bucket`` and nothing else."""
    s3_server.clear()
    s3_server.client().create_bucket(Bucket="bucket")
    return s3_server


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the database that all tests share; the first one that needs it starts it."""
    server = Server(shared_uri(tmp_path_factory))
    yield server
    server.stop()


@pytest.fixture
def server(mlflow_server: Server) -> Iterator[ServerOfATest]:
    """A server of the database that all tests share, which is not there until the test starts it."""
    server = ServerOfATest(mlflow_server)
    yield server
    server.leave()


@pytest.fixture(scope="session")
def one_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneHost]:
    """A Ray cluster of this machine alone, which asks for a token."""
    with OneHost(tmp_path_factory.mktemp("ray")) as head:
        yield head


@pytest.fixture(scope="session")
def call(fork_server: ForkServer) -> Callable[..., str]:
    """Run a command, which finds ``denoise`` where it stands, and return what it prints."""
    path = f"{Path(fork_server.command[0]).parent}:{BIN}:{os.environ['PATH']}"

    def run(*command: str, cwd: Path, code: int = 0, **variables: str) -> str:
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(cwd), **variables}
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment, timeout=500)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def copy_of_the_project(call: Callable[..., str]) -> Callable[[Path], Path]:
    """Make a git checkout of the project whose parameters ask for a short training."""

    def make(folder: Path) -> Path:
        (folder / ".dvc").mkdir(parents=True)
        for name in ("denoise", "pipelines"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in (".dvc/config", ".dvc/.gitignore", "dvc.yaml", "params.yaml", ".gitignore", ".dvcignore"):
            shutil.copy(ROOT / name, folder / name)
        params = yaml.safe_load((folder / "params.yaml").read_text())
        params["net"] = "cnn5"  # after 40 steps better than the noisy images, as a champion has to be
        params["train"] |= {"steps": 40, "crop": 32, "log_every": 20, "eval_every": 40, "checkpoint_every": 40}
        params["ray"] |= {"workers": 1}
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
        commit = ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "start"]
        for command in (["init", "-q"], ["add", "-A"], commit):
            call("git", *command, cwd=folder)
        return folder

    return make


@pytest.fixture(scope="session")
def checkout(tmp_path_factory, call, one_host, copy_of_the_project):
    """A git checkout of the project after its first ``dvc repro``; its two trainings join the cluster of the tests."""
    folder = copy_of_the_project(tmp_path_factory.mktemp("checkout") / "project")
    call("dvc", "repro", cwd=folder, **one_host.variables)
    return folder
