"""The MLflow web page: starts MLflow's server on the tracking database, and stops it with all its processes."""

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
from denoise.redaction import without_passwords
from pipelines.signals import interrupt_on_sigterm, on_sigterm
from pipelines.tracking.client import ENVIRONMENT, artifact_root, check_reachable, client, database_in_use

LOOPBACK = "127.0.0.1"
TRAINING = "workflowType=machine_learning"  # otherwise MLflow 3 opens its pages for language models
START_SECONDS = 120.0  # MLflow's server normally answers after 5 to 15 s
STOP_SECONDS = 10.0  # after which the server is killed


def run_ui(uri: str, port: int, host: str = LOOPBACK, experiment: str = "denoise") -> None:
    """Serve the MLflow page in the foreground until Ctrl-C or SIGTERM; then stop the server and its processes.

    Args:
        uri: absolute tracking uri of a database.
        port: TCP port.
        host: address to listen on; only this machine can reach the default. MLflow has no login.
        experiment: whose runs the printed addresses show.

    Raises:
        UserError: the port cannot be used, the uri is that of a server, or the server did not start.
    """
    if uri.startswith("http"):
        raise UserError(
            f"tracking.uri={without_passwords(uri)} is an MLflow server already: open that address in a browser."
        )
    check_port(host, port)
    if not _is_loopback(host):
        print(
            f"warning: MLflow has no login: everyone who can reach {host}:{port} can read, change and delete runs "
            "and models.",
            file=sys.stderr,
        )
    with database_in_use(uri):  # made, if need be
        _serve(uri, port, host, experiment)


def _serve(uri: str, port: int, host: str, experiment: str) -> None:
    server = start_server(uri, port, host)
    try:
        with on_sigterm(interrupt_on_sigterm):
            wait_until_up(server, host, port)
            print(_addresses(uri, f"http://{_connect_host(host)}:{port}/#", experiment), flush=True)
            server.wait()
    except KeyboardInterrupt:
        return
    finally:
        stop_server(server)
    if server.returncode:
        raise UserError(f"the MLflow server ended with code {server.returncode}; its messages are above.")


def _addresses(uri: str, site: str, experiment: str) -> str:
    """Return what to print: the pages of the experiment's runs, of their charts, and of the registered models."""
    entity = client(uri).get_experiment_by_name(experiment)
    runs = f"{site}/experiments/{entity.experiment_id}/runs?{TRAINING}" if entity else f"{site}/experiments?{TRAINING}"
    lines = [f"MLflow shows {without_passwords(uri)} at {runs} (Ctrl-C ends it)"]
    if entity:
        lines.append(f"  charts: {runs}&compareRunsMode=CHART")
    return "\n".join([*lines, f"  models: {site}/models?{TRAINING}"])


def check_port(host: str, port: int) -> None:
    """Raise a UserError if the port cannot be listened on; where it is in use, the error names a free one."""
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
            f"--port {free_port(host, family)}."
        ) from None


def start_server(uri: str, port: int, host: str = LOOPBACK) -> "subprocess.Popen[bytes]":
    """Start MLflow's server on a database, in a session of its own, so that ``stop_server`` ends its children too."""
    command = [sys.executable, "-m", "mlflow", "server"]
    command += ["--host", host, "--port", str(port), "--workers", "1", "--uvicorn-opts", "--log-level warning"]
    root = artifact_root(uri)
    if root:  # files that other programs log through this server go where our runs write theirs directly
        command += ["--serve-artifacts", "--artifacts-destination", root.as_uri()]
    # The job runner serves only features for language models, and is three more processes.
    defaults = {**ENVIRONMENT, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONWARNINGS": "ignore"}
    environment = {**defaults, **os.environ}
    environment["MLFLOW_BACKEND_STORE_URI"] = uri  # not on the command line: it may hold a password
    null = subprocess.DEVNULL  # standard output is greetings; errors go to standard error
    return subprocess.Popen(command, env=environment, stdin=null, stdout=null, start_new_session=True)


def wait_until_up(server: "subprocess.Popen[bytes]", host: str, port: int) -> None:
    """Wait until the server answers; raise a UserError if it ends or does not answer within two minutes."""
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None:
        with contextlib.suppress(UserError):
            check_reachable(f"http://{_connect_host(host)}:{port}")
            return
        if time.monotonic() > deadline:
            raise UserError(f"the MLflow server did not answer within {START_SECONDS:.0f} s; its messages are above.")
        time.sleep(0.2)
    raise UserError(f"the MLflow server ended with code {server.returncode}; its messages are above.")


def stop_server(server: "subprocess.Popen[bytes]") -> None:
    """Terminate the server and its children; kill them if that takes too long."""
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


def _connect_host(host: str) -> str:
    """Return the host part of a URL under which this machine reaches a server that listens on ``host``."""
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_unspecified:  # 0.0.0.0 or ::, all addresses of this machine
            return LOOPBACK
    return f"[{host}]" if ":" in host else host


def free_port(host: str = LOOPBACK, family: socket.AddressFamily = socket.AF_INET) -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
