"""Several hosts on one machine: network namespaces on a bridge, each with an address and Ray processes of its own."""

import os
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path

BIN = Path(sys.executable).parent
PORT = 6399
FIND = """
import sys, ray
ray.init(logging_level="ERROR")
print(next(node["NodeID"] for node in ray.nodes() if node["NodeManagerAddress"] == sys.argv[1]))
"""


def possible() -> bool:
    """Say whether this process may make network namespaces."""
    name = f"probe{secrets.token_hex(3)}"
    try:
        made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    except FileNotFoundError:
        return False
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    return made.returncode == 0


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Hosts:
    """A Ray cluster of several hosts: number 1 is its head and has no processors, the others have one each.

    They share all files, but for those below ``own``, where each host has a disk of its own.
    """

    def __init__(self, count: int, folder: Path, own: Path | None = None, token: bool = True) -> None:
        self.tag, self.folder, self.count, self.own = secrets.token_hex(2), folder, count, own
        self.net = f"10.{100 + secrets.randbelow(100)}.{secrets.randbelow(250)}"
        self.ray_folder = Path(f"/tmp/ray-{self.tag}")  # Ray's sockets have a limit of 107 characters
        self.hosts: list[int] = []
        self.started: list[subprocess.Popen[bytes]] = []
        (folder / "token").write_text(secrets.token_hex(32))
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("RAY_")},
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token" if token else "disabled",
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            "GLOO_SOCKET_IFNAME": "eth0",
        }

    def __enter__(self) -> "Hosts":
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("addr", "add", f"{self.outside}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        try:
            for _ in range(self.count):
                self.join()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for number in self.hosts:
            self.kill(number)
            subprocess.run(["ip", "netns", "delete", self._name(number)], capture_output=True, check=False)
        for process in self.started:
            process.wait(30)
        subprocess.run(["ip", "link", "delete", self._bridge], capture_output=True, check=False)
        shutil.rmtree(self.ray_folder, ignore_errors=True)

    def join(self) -> int:
        """Add a host to the cluster and return its number."""
        number = len(self.hosts) + 1
        name, veth = self._name(number), f"v{self.tag}{number}"
        _ip("netns", "add", name)
        self.hosts.append(number)
        _ip("link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", veth, "master", self._bridge, "up")
        _ip("-n", name, "addr", "add", f"{self.address(number)}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        _ip("-n", name, "link", "set", "lo", "up")
        self.begin(number)
        return number

    def begin(self, number: int) -> None:
        """Start what runs on a host from the beginning: Ray."""
        if number == 1:
            self._ray(
                1, "--head", f"--port={PORT}", "--num-cpus=0", f"--temp-dir={self.ray_folder}", "--include-dashboard=0"
            )
        else:
            self._ray(number, f"--address={self.address(1)}:{PORT}", "--num-cpus=1")

    def drain(self, number: int, seconds: int) -> None:
        """Tell Ray that a host will be taken away in so many seconds, as a cloud does with a spot machine."""
        node = self.start(1, sys.executable, "-c", FIND, self.address(number), stdout=subprocess.PIPE)
        found = node.communicate(timeout=60)[0].strip()
        why = [
            "--reason=DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message=test",
            f"--deadline-remaining-seconds={seconds}",
        ]
        command = ["ray", "drain-node", f"--address={self.address(1)}:{PORT}", f"--node-id={found}", *why]
        subprocess.run(self._on(1, *command), env=self.environment, check=True, capture_output=True)

    @property
    def outside(self) -> str:
        """The address at which the hosts reach this process: for servers that no host's failure takes along."""
        return f"{self.net}.254"

    def disk(self, number: int) -> Path:
        """Return what a host has at ``own``."""
        disk = self.folder / f"disk-{number}"
        disk.mkdir(exist_ok=True)
        return disk

    def address(self, number: int) -> str:
        """Return the address of a host."""
        return f"{self.net}.{number}"

    def start(self, number: int, *command: str, **options: object) -> "subprocess.Popen[str]":
        """Start a command on a host."""
        at = {"RAY_ADDRESS": f"{self.address(1)}:{PORT}"}
        return subprocess.Popen(self._on(number, *command), env={**self.environment, **at}, text=True, **options)

    def pids(self, number: int) -> list[int]:
        """Return the processes of a host."""
        found = subprocess.run(["ip", "netns", "pids", self._name(number)], capture_output=True, text=True, check=False)
        return [int(pid) for pid in found.stdout.split()]

    def kill(self, number: int) -> None:
        """Let a host fail: all its processes are gone at once."""
        deadline = time.monotonic() + 20
        while (pids := self.pids(number)) and time.monotonic() < deadline:
            for pid in pids:
                try:
                    os.kill(pid, 9)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)

    def _ray(self, number: int, *options: str) -> None:
        command = ["ray", "start", f"--node-ip-address={self.address(number)}", "--block", *options]
        path = self.folder / f"ray-{number}.log"
        with path.open("wb") as log:
            begun = subprocess.Popen(self._on(number, *command), env=self.environment, stdout=log, stderr=log)
        self.started.append(begun)
        deadline = time.monotonic() + 60
        while "Ray runtime started" not in path.read_text():  # one after another: they share Ray's folder
            assert begun.poll() is None, path.read_text()
            assert time.monotonic() < deadline, path.read_text()
            time.sleep(0.1)

    def _on(self, number: int, *command: str) -> list[str]:
        enter = ["ip", "netns", "exec", self._name(number)]  # its mounts are its own too
        if self.own is None:
            return [*enter, *command]
        mount = ["sh", "-c", 'mount --bind "$0" "$1" && cd "$1" && shift && exec "$@"']
        return [*enter, *mount, str(self.disk(number)), str(self.own), *command]

    def _name(self, number: int) -> str:
        return f"host-{self.tag}-{number}"

    @property
    def _bridge(self) -> str:
        return f"br{self.tag}"
