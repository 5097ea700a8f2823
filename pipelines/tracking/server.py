"""The MLflow page: runs with their curves and images, models with their alias, served from the tracking database."""

import contextlib
import errno
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import time

from denoise.errors import UserError
from pipelines.signals import interrupt_on_sigterm, on_sigterm
from pipelines.tracking.client import ENVIRONMENT, artifact_root, check_answers, client, without_password

LOOPBACK = "127.0.0.1"
PAGE = "/#/experiments?workflowType=machine_learning"  # MLflow 3 opens its pages for language models otherwise
START_SECONDS = 120.0  # MLflow's server takes 5 to 15 s to answer
STOP_SECONDS = 10.0


def run_ui(uri: str, port: int, host: str = LOOPBACK) -> None:
    """Serve the MLflow page in the foreground until Ctrl-C (or SIGTERM) ends it and everything it started.

    Args:
        uri: absolute tracking uri of a database; a server that runs already needs no second one.
        port: TCP port.
        host: address to listen on. Only this machine can reach the default; MLflow has no login.

    Raises:
        UserError: the port is in use, the uri is a server, or the server did not start.
    """
    if uri.startswith("http"):
        raise UserError(
            f"tracking.uri={without_password(uri)} is an MLflow server already: open that address in a browser."
        )
    check_port(host, port)
    client(uri)  # creates the database, one process at a time
    if not _is_loopback(host):
        print(
            f"warning: MLflow has no login: everyone who can reach {host}:{port} can read, change and delete runs "
            "and models.",
            file=sys.stderr,
        )
    server = start_server(uri, port, host)
    try:
        with on_sigterm(interrupt_on_sigterm):
            wait_until_up(server, host, port)
            print(
                f"MLflow shows {without_password(uri)} at http://{_reachable(host)}:{port}{PAGE} (Ctrl-C ends it)",
                flush=True,
            )
            server.wait()
    except KeyboardInterrupt:
        return
    finally:
        stop_server(server)
    if server.returncode:
        raise UserError(f"the MLflow server ended with code {server.returncode}; its messages are above.")


def check_port(host: str, port: int) -> None:
    """Raise a UserError if nothing can listen on that port, naming a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: a closed one may linger
            probe.bind((host, port))
    except PermissionError:
        raise UserError(f"port {port} needs more rights: use one above 1023, for example --port 5000.") from None
    except OverflowError:
        raise UserError(f"port {port} is no port: use one between 1024 and 65535.") from None
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise UserError(f"the MLflow page cannot listen on {host}:{port}: {error.strerror}.") from None
        raise UserError(
            f"port {port} on {host} is in use: stop the program that uses it, or take another port, for example "
            f"--port {_free_port(host, family)}."
        ) from None


def start_server(uri: str, port: int, host: str = LOOPBACK) -> "subprocess.Popen[bytes]":
    """Start a server of a database with its images and models; it and its children are a session of their own."""
    command = [sys.executable, "-m", "mlflow", "server"]
    command += ["--host", host, "--port", str(port), "--workers", "1", "--uvicorn-opts", "--log-level warning"]
    root = artifact_root(uri)
    if root:  # what other programs log through this server lands beside what our runs write directly
        command += ["--serve-artifacts", "--artifacts-destination", root.as_uri()]
    # The job runner serves language-model features only and would be three more processes.
    defaults = {**ENVIRONMENT, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONWARNINGS": "ignore"}
    environment = {**defaults, **os.environ}
    environment["MLFLOW_BACKEND_STORE_URI"] = uri  # not on the command line: it may hold a password
    quiet = subprocess.DEVNULL  # its greetings go to standard output, its errors to standard error
    return subprocess.Popen(command, env=environment, stdin=quiet, stdout=quiet, start_new_session=True)


def wait_until_up(server: "subprocess.Popen[bytes]", host: str, port: int) -> None:
    """Return when the server answers; raise a UserError when it has ended or does not answer in two minutes."""
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None:
        with contextlib.suppress(UserError):
            check_answers(f"http://{_reachable(host)}:{port}")
            return
        if time.monotonic() > deadline:
            raise UserError(f"the MLflow server did not answer within {START_SECONDS:.0f} s; its messages are above.")
        time.sleep(0.2)
    raise UserError(f"the MLflow server ended with code {server.returncode}; its messages are above.")


def stop_server(server: "subprocess.Popen[bytes]") -> None:
    """End the server and its children, by force if it takes too long."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(STOP_SECONDS)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _reachable(host: str) -> str:
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_unspecified:  # 0.0.0.0: every address of this machine
            return LOOPBACK
    return f"[{host}]" if ":" in host else host


def _free_port(host: str, family: socket.AddressFamily) -> int:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
