"""The MLflow server of all tests at an address of a test's own, where it seems to start and to end."""

import os
import signal

from tests.pipelines.mlflow_helpers import Server
from tests.pipelines.s3_helpers import Network


class ServerOfATest:
    """Not there until it is started; it can be stopped for a while, killed, and started again."""

    def __init__(self, shared: Server) -> None:
        self.shared = shared
        self.network = Network(shared.port)
        self.address = f"http://127.0.0.1:{self.network.port}"

    def start(self) -> None:
        """Let connections in, to a server that runs."""
        if self.shared.process is None:
            self.shared.start()
        self.network.up()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the server and all its processes."""
        assert self.shared.process is not None
        os.killpg(self.shared.process.pid, number)

    def kill(self) -> None:
        """Kill the server; nobody listens at its address any more."""
        self.shared.kill()
        self.network.down()

    def leave(self) -> None:
        """Refuse connections, and leave the server to the next test."""
        self.network.down()
        if self.shared.process is not None:
            self.signal(signal.SIGCONT)
