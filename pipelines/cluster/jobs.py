"""Send a command to a cluster through Ray's Jobs API, with the code and the parameters of the current folder."""

import asyncio
import contextlib
import os
import re
import secrets
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from denoise.errors import UserError, first_line
from denoise.redaction import has_password
from pipelines.cluster.auth import AUTH_HINT, protect_token, refuse_open_dashboard
from pipelines.cluster.package import REMEDY

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from denoise.config import Config

ADDRESS = "RAY_API_SERVER_ADDRESS"  # Ray's environment variable for the address of a dashboard
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
# ``python -m`` imports from the current folder first: the code that was sent runs even if the package is installed.
# With ``denoise`` from the PATH, the driver would run the installed code, and Ray's workers the code that was sent.
ENTRYPOINT = ("python", "-m", "pipelines.cli")
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Job:
    """A command that was sent to a cluster."""

    name: str
    address: str  # of the dashboard

    @property
    def hint(self) -> str:
        """Return the commands that show the job's log and stop the job."""
        target = f"--address {self.address} {self.name}"
        return f"to see it: ray job logs --follow {target}; to stop it: ray job stop {target}"


def dashboard_address(given: str | None) -> str:
    """Return the address of the dashboard: ``given``, or RAY_API_SERVER_ADDRESS, or port 8265 of this machine.

    Raises:
        UserError: it is not a web address.
    """
    address = (given or os.environ.get(ADDRESS) or DEFAULT_ADDRESS).rstrip("/")
    if not address.startswith(("http://", "https://")):
        raise UserError(
            f"--address {address} is not the address of Ray's dashboard; write http://HOST:8265, or forward the head's "
            "port to this machine and omit --address."
        )
    return address


def job_name(command: Sequence[str]) -> str:
    """Return a name made of the command's first words, the time and a random suffix."""
    words = [word for word in command if not word.startswith("-") and "=" not in word][:2]
    stem = re.sub(r"[^A-Za-z0-9_.-]+", "-", "-".join(words)).strip("-.")
    return f"{stem}-{time.strftime('%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def job_local_settings(command: Sequence[str], configure: "Callable[[list[str]], Config]") -> list[str]:
    """Return the settings of a training run or a sweep that name files in the job's folder, which Ray deletes.

    Args:
        command: the words after ``denoise``.
        configure: returns the configuration for a list of ``key=value`` settings.
    """
    from denoise.config import Config, flatten, to_dict

    if command[0] not in ("train", "tune"):
        return []
    known = flatten(to_dict(Config()))
    settings = [setting for setting in settings_of(command) if setting.partition("=")[0].strip() in known]
    config = flatten(to_dict(configure(settings)))
    keys = ("ray.storage", "tracking.uri", *(("tune.storage",) if command[0] == "tune" else ()))
    return [f"{key}={config[key]}" for key in keys if _is_relative(config[key])]


def settings_of(command: Sequence[str]) -> list[str]:
    """Return the KEY=VALUE of a command in the order in which they count: its arguments, then its -S options."""
    arguments, options, words = list[str](), list[str](), iter(command)
    for word in words:
        if word in ("-S", "--set"):
            options.append(next(words, ""))
        elif word.startswith(("-S", "--set=")):
            options.append(word.removeprefix("-S").removeprefix("--set="))
        elif "=" in word and not word.startswith("-"):
            arguments.append(word)
    return [*arguments, *options]


def refuse_passwords(command: Sequence[str]) -> None:
    """Refuse a command with a password of an address: all who see the cluster's jobs see their commands.

    Raises:
        UserError: there is one.
    """
    for word in command:
        if has_password(word):
            raise UserError(
                f"{word} holds a password, which everyone who sees the cluster's jobs could read; {REMEDY}."
            )


def entrypoint(command: Sequence[str]) -> str:
    """Return the shell command of a job that runs ``denoise COMMAND``."""
    return shlex.join([*ENTRYPOINT, *command])


def _is_relative(address: str) -> bool:
    path = address.removeprefix("sqlite:///").removeprefix("journal:")
    return "://" not in path and not path.startswith("/")


def submit(command: Sequence[str], package: Path, address: str | None = None, name: str | None = None) -> Job:
    """Send ``denoise COMMAND`` and a folder to a cluster.

    Args:
        command: the words after ``denoise``.
        package: the folder as a zip file (``packed_folder``).
        address: of the cluster's dashboard (``dashboard_address``).
        name: of the job; None: made by ``job_name``.

    Raises:
        UserError: the dashboard cannot be reached, requires no token, or refuses the job.
    """
    job = Job(name or job_name(command), dashboard_address(address))
    refuse_open_dashboard(job.address)
    client = _client(job.address)
    with _plain_errors(job):
        client.submit_job(
            entrypoint=entrypoint(command),
            submission_id=job.name,
            runtime_env={"working_dir": str(package)},
        )
    return job


def follow(job: Job, out: IO[str]) -> str:
    """Print a job's log to ``out`` until the job has ended, and return its final status.

    Raises:
        UserError: the dashboard has stopped answering; the job may go on.
    """
    client = _client(job.address)
    with _plain_errors(job):
        asyncio.run(_print_log(client, job.name, out))
        while not (status := client.get_job_status(job.name)).is_terminal():
            time.sleep(POLL_SECONDS)
    return str(status.value)


def failure_message(job: Job, status: str) -> str | None:
    """Return the error message for a job's final status, None if the job succeeded."""
    if status == "SUCCEEDED":
        return None
    with _plain_errors(job):
        message = _client(job.address).get_job_info(job.name).message or ""
    reason = message.partition(", last available logs")[0].strip().rstrip(".")
    log_command = f"ray job logs --address {job.address} {job.name}"
    return f"job {job.name} ended {status} ({reason}); its log: {log_command}"


async def _print_log(client: "JobSubmissionClient", name: str, out: IO[str]) -> None:
    async for lines in client.tail_job_logs(name):
        print(lines, end="", file=out, flush=True)


def _client(address: str) -> "JobSubmissionClient":
    import logging

    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    protect_token()
    logging.disable(logging.WARNING)  # Ray's client logs every package and every connection
    os.environ[ADDRESS] = address  # Ray prefers the environment variable to the argument
    try:
        return JobSubmissionClient(address)
    except AuthenticationError:
        raise UserError(
            f"Ray at {address} requires a token, and this process has none or another; {AUTH_HINT}."
        ) from None
    except Exception as error:  # whatever requests and Ray raise for an address that is not Ray's
        raise UserError(
            f"what answers at {address} is not Ray's dashboard ({first_line(error)}); check --address."
        ) from None


@contextlib.contextmanager
def _plain_errors(job: Job) -> Iterator[None]:
    """Turn an error of Ray's Jobs API into one sentence."""
    try:
        yield
    except (RuntimeError, OSError) as error:  # OSError: exceptions of requests are OSErrors
        text = str(error)
        if "already exists" in text:
            raise UserError(f"a job {job.name} already exists at {job.address}; give another --name.") from None
        if "status code 413" in text:  # Ray's documented 500 MiB hold only without the dashboard
            raise UserError(
                "this folder is too large to be sent: Ray's dashboard accepts at most 100 MiB; move what is not code "
                "elsewhere, or list it in .gitignore."
            ) from None
        raise UserError(f"Ray at {job.address} failed on job {job.name} ({_reason(text)}); {job.hint}.") from None


def _reason(text: str) -> str:
    """Return the last line of an answer of Ray's: of a traceback, the line that names the error."""
    lines = [line.strip() for line in text.replace("\\n", "\n").splitlines() if line.strip(' "}.')]
    return lines[-1].strip(' "}.') if lines else "no reason"
