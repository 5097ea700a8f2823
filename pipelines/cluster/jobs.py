"""Sending a command to a cluster: through Ray's Jobs API, with the code and the parameters of this folder."""

import asyncio
import contextlib
import os
import re
import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from denoise.errors import UserError, first_line
from pipelines.cluster.auth import SHOW_IT, refuse_open_dashboard

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from denoise.config import Config

ADDRESS = "RAY_API_SERVER_ADDRESS"  # Ray's own name for the address of a dashboard
DEFAULT = "http://127.0.0.1:8265"
# What ray_cluster.yaml does not copy either; Ray leaves out what .gitignore names besides.
EXCLUDED = (".git/", ".venv/", "data/", "runs/", "models/", "mlartifacts/", "sweeps/", "*.db")
# ``python -m`` looks into the current folder first: the code that was sent runs, be the package installed there or not.
# A ``denoise`` on the PATH would drive with the installed code what Ray's workers do with the code that was sent.
ENTRYPOINT = ("python", "-m", "pipelines.cli")
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Job:
    """A command that was sent."""

    name: str
    address: str  # of the dashboard

    @property
    def hint(self) -> str:
        """Return how to see the job and how to stop it."""
        where = f"--address {self.address} {self.name}"
        return f"to see it: ray job logs --follow {where}; to stop it: ray job stop {where}"


def dashboard_address(given: str | None) -> str:
    """Return the address of the dashboard: the one that is given, else Ray's own variable, else this machine's."""
    address = (given or os.environ.get(ADDRESS) or DEFAULT).rstrip("/")
    if not address.startswith(("http://", "https://")):
        raise UserError(
            f"--address {address} is not the address of Ray's dashboard; write http://HOST:8265, or forward the head's "
            "port to this machine and leave it away."
        )
    return address


def job_name(command: Sequence[str]) -> str:
    """Return a name that says what runs and that no other job has."""
    words = [word for word in command if not word.startswith("-") and "=" not in word][:2]
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", "-".join(words)).strip("-.")
    return f"{stem}-{time.strftime('%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def lost(command: Sequence[str], configure: "Callable[[list[str]], Config]") -> list[str]:
    """Return the settings of a training or a sweep that name files in the job's own folder, which goes with the job.

    Args:
        command: the words after ``denoise``.
        configure: returns the configuration of some ``key=value`` settings.
    """
    from denoise.config import Config, flatten, to_dict

    if command[0] not in ("train", "tune"):
        return []
    known = flatten(to_dict(Config()))
    settings = [word for word in command if "=" in word and word.partition("=")[0] in known]
    config = flatten(to_dict(configure(settings)))
    keys = ("ray.storage", "tracking.uri", *(("tune.storage",) if command[0] == "tune" else ()))
    return [f"{key}={config[key]}" for key in keys if _is_relative(config[key])]


def _is_relative(address: str) -> bool:
    path = address.removeprefix("sqlite:///").removeprefix("journal:")
    return "://" not in path and not path.startswith("/")


def submit(command: Sequence[str], address: str | None = None, name: str | None = None) -> Job:
    """Send ``denoise COMMAND`` to a cluster, with the current folder.

    Args:
        command: the words after ``denoise``.
        address: of the cluster's dashboard.
        name: of the job.

    Raises:
        UserError: the dashboard cannot be reached or is open to strangers, or refuses the job.
    """
    job = Job(name or job_name(command), dashboard_address(address))
    refuse_open_dashboard(job.address)
    client = _client(job.address)
    with _plain_errors(job):
        client.submit_job(
            entrypoint=shlex.join([*ENTRYPOINT, *command]),
            submission_id=job.name,
            runtime_env={"working_dir": ".", "excludes": list(EXCLUDED)},
        )
    return job


def follow(job: Job, out: IO[str]) -> str:
    """Pass on what a job prints until it has ended, and return its state.

    Raises:
        UserError: the dashboard does not answer any more; the job may go on.
    """
    client = _client(job.address)
    with _plain_errors(job):
        asyncio.run(_tail(client, job.name, out))
        while not (state := client.get_job_status(job.name)).is_terminal():
            time.sleep(POLL_SECONDS)
    return str(state.value)


def failure(job: Job, state: str) -> str | None:
    """Return the sentence about a job that has not succeeded, None for one that has."""
    if state == "SUCCEEDED":
        return None
    with _plain_errors(job):
        message = _client(job.address).get_job_info(job.name).message or ""
    reason = message.partition(", last available logs")[0].strip().rstrip(".")
    again = f"ray job logs --address {job.address} {job.name}"
    return f"job {job.name} ended {state} ({reason}); its log: {again}"


async def _tail(client: "JobSubmissionClient", name: str, out: IO[str]) -> None:
    async for lines in client.tail_job_logs(name):
        print(lines, end="", file=out, flush=True)


def _client(address: str) -> "JobSubmissionClient":
    import logging

    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.disable(logging.WARNING)  # Ray's client tells of every package and every connection
    os.environ[ADDRESS] = address  # Ray prefers the environment to what it is given
    try:
        return JobSubmissionClient(address)
    except AuthenticationError:
        raise UserError(
            f"Ray at {address} asks for a token, and this process shows none or another; {SHOW_IT}."
        ) from None
    except Exception as error:  # whatever requests and Ray make of an address where no Ray is
        raise UserError(
            f"what answers at {address} is no dashboard of Ray's ({first_line(error)}); check --address."
        ) from None


@contextlib.contextmanager
def _plain_errors(job: Job) -> Iterator[None]:
    """Turn what Ray says of a job into one sentence."""
    try:
        yield
    except (RuntimeError, OSError) as error:  # OSError: also what requests raises
        text = str(error)
        if "already exists" in text:
            raise UserError(f"there is a job {job.name} at {job.address} already; give another --name.") from None
        if "status code 413" in text:  # Ray's limit of 500 MiB is for packages that do not come through its dashboard
            raise UserError(
                "this folder is too large to be sent, as Ray's dashboard takes 100 MiB at most; move what is not code "
                "elsewhere, or name it in .gitignore."
            ) from None
        raise UserError(f"Ray at {job.address} failed at job {job.name} ({_reason(text)}); {job.hint}.") from None


def _reason(text: str) -> str:
    """Return the last line of an answer of Ray's, where its tracebacks say what happened."""
    lines = [line.strip() for line in text.replace("\\n", "\n").splitlines() if line.strip(' "}.')]
    return lines[-1].strip(' "}.') if lines else "no reason"
