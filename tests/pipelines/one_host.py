"""A Ray cluster of one host, this machine, with a token and a dashboard on ports of its own."""

import os
import secrets
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from tests.pipelines.mlflow_helpers import free_port

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
STOP_SECONDS = 3.0


class OneHost:
    """``ray start --head``, and the environment in which it is joined."""

    def __init__(self, folder: Path) -> None:
        self.port, self.dashboard = free_port(), free_port()
        self.log = folder / "ray.log"
        self.ray_folder = Path(f"/tmp/ray-{secrets.token_hex(2)}")  # Ray's sockets have a limit of 107 characters
        (folder / "token").write_text(secrets.token_hex(32))
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),  # Ray's processes have folders of their own
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        }

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables with which a command joins the cluster."""
        token = {key: value for key, value in self.environment.items() if key.startswith("RAY_AUTH_")}
        return {"RAY_ADDRESS": self.address, **token}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    def run(self, *command: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command that joins the cluster or sends it something."""
        env = {**self.environment, **environment}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    def __enter__(self) -> "OneHost":
        ports = {"port": self.port, "dashboard-port": self.dashboard, "ray-client-server-port": free_port()}
        ports["dashboard-agent-listen-port"] = free_port()
        options = [f"--{name}={port}" for name, port in ports.items()]
        options += ["--num-cpus=1", f"--temp-dir={self.ray_folder}", "--include-dashboard=true"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["ray", "start", "--head", "--block", *options], env=self.environment, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in self.log.read_text():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise AssertionError(self.log.read_text())
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        processes = psutil.Process(self.process.pid).children(recursive=True)
        self.process.terminate()
        # What it has started ends with it, but it waits 30 s for a detached actor of Ray Train that never ends.
        for process in psutil.wait_procs(processes, STOP_SECONDS)[1]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(120)
        shutil.rmtree(self.ray_folder, ignore_errors=True)
