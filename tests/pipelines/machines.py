"""Machines of one's own on one machine: hosts with an sshd each, and processes, a home and a /tmp of their own."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tests.pipelines.hosts import Hosts, possible

ROOT = Path(__file__).parents[2]
HOME = Path("/srv/home")  # of the user on every machine; below /srv each has a disk of its own
SHARED = Path("/mnt")  # the same folder on all
SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
# Ray stops the Ray processes that it finds on its machine: without process numbers of their own, those of all.
OWN_PROCESSES = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
START = """
mount --bind "$1/srv" /srv && mount --bind "$2" /mnt && mount --bind "$1/passwd" /etc/passwd &&
mount -t tmpfs tmpfs /run && mkdir /run/sshd && mount --bind "$1/tmp" /tmp && shift 2 && exec "$@"
"""


def ready() -> bool:
    """Say whether this process may make such machines."""
    return possible() and Path(SSHD).exists() and all(map(shutil.which, ("ssh", "ssh-keygen", "rsync", "unshare")))


class Machines(Hosts):
    """Hosts without Ray, which one may log in to with the key ``~/.ssh/denoise_ray`` of the last one, a laptop."""

    def __init__(self, count: int, folder: Path) -> None:
        super().__init__(count, folder)
        self.inits: dict[int, subprocess.Popen[bytes]] = {}
        self.shared = folder / "shared"
        self.shared.mkdir(exist_ok=True)
        for kind in ("user", "host"):
            make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / kind)]
            subprocess.run(make, check=True)

    def begin(self, number: int) -> None:
        """Start sshd, as the first process of the machine."""
        self._furnish(number)
        options = {
            "HostKey": "/srv/host",
            "ListenAddress": self.address(number),
            "AuthorizedKeysFile": f"{HOME}/.ssh/authorized_keys",
            "PermitRootLogin": "prohibit-password",
            "PasswordAuthentication": "no",
            "PidFile": "none",
        }
        sshd = [SSHD, "-D", "-e", "-f", "/dev/null", *(f"-o{key}={value}" for key, value in options.items())]
        start = ["sh", "-c", START, "start", str(self.disk(number)), str(self.shared), *sshd]
        path = self.folder / f"sshd-{number}.log"
        with path.open("wb") as log:
            init = subprocess.Popen(self._on(number, *OWN_PROCESSES, *start), stdout=log, stderr=log)
        self.started.append(init)
        self.inits[number] = init
        deadline = time.monotonic() + 30
        while "Server listening" not in path.read_text():
            assert init.poll() is None, path.read_text()
            assert time.monotonic() < deadline, path.read_text()
            time.sleep(0.05)

    def _furnish(self, number: int) -> None:
        """Make a machine's disk: a user with a key, and an environment as if this package had been installed there."""
        disk, home = self.disk(number), self.home(number)
        for part in (home / ".ssh", home / "denoise-venv", disk / "tmp"):
            part.mkdir(parents=True)
        (disk / "passwd").write_text(f"root:x:0:0:root:{HOME}:/bin/bash\nsshd:x:100:65534::/run/sshd:/bin/false\n")
        for part in Path(sys.prefix).iterdir():
            (home / "denoise-venv" / part.name).symlink_to(part)
        shutil.copy(ROOT / "constraints.txt", home / "denoise-venv" / "installed.txt")
        shutil.copy(self.folder / "user.pub", home / ".ssh" / "authorized_keys")
        shutil.copy(self.folder / "host", disk / "srv" / "host")
        if number == self.count:
            shutil.copy(self.folder / "user", home / ".ssh" / "denoise_ray")

    def home(self, number: int) -> Path:
        """Return the home folder of a machine, as seen from outside."""
        return self.disk(number) / "srv" / HOME.name

    def on(self, number: int, command: str, folder: Path = HOME) -> "subprocess.Popen[str]":
        """Start a shell command on a machine, with its files and processes."""
        (first,) = _children(self.inits[number].pid)
        enter = ["nsenter", f"--target={first}", "--net", "--mount", "--pid", f"--wdns={folder}"]
        environment = {"HOME": str(HOME), "PATH": f"{HOME}/denoise-venv/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        environment |= {"USER": "root", "LOGNAME": "root", "LANG": "C.UTF-8"}
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [*enter, "bash", "-c", command],
            env=environment,
            stdin=pipe,
            stdout=pipe,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, number: int, command: str, folder: Path = HOME, seconds: float = 300) -> str:
        """Run a shell command on a machine and return its output."""
        process = self.on(number, command, folder)
        try:
            out, _ = process.communicate(timeout=seconds)
        finally:
            self.stop(process)
        assert process.returncode == 0, out
        return out

    def stop(self, process: "subprocess.Popen[str]") -> None:
        """End a shell command and the programs that it started, as Ctrl-C does."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def _children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=True)
    return [int(child) for child in found.stdout.split()]
