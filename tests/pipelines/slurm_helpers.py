"""A Slurm of several nodes on one machine: a slurmd on each of several hosts, which are network namespaces."""

import os
import secrets
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

from tests.pipelines.hosts import Hosts, possible
from tests.pipelines.mlflow_helpers import free_port

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "sinfo", "unshare")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
# No cgroups, accounting or user of its own: what this process may use, and nothing outside of one folder.
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={name}({outside})
SlurmctldPort={port}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/affinity
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
SchedulerParameters=sched_interval=2,batch_sched_delay=0
FirstJobId={first}
KillWait=20
GresTypes=gpu
PartitionName=all Nodes=ALL Default=YES
"""
NAMED = 'hostname "$0" && mount --bind "$1" /etc/hosts && shift && exec "$@"'
# The GPUs are of Slurm alone, which counts files of their name.
GPUS = "Name=gpu File=/dev/null\n"


def ready() -> bool:
    """Say whether this process may make such a Slurm."""
    return possible() and all(shutil.which(program, path=PATH) for program in PROGRAMS)


class Slurm(Hosts):
    """Hosts without Ray, nodes node1, node2 ... of a Slurm whose controller runs outside of them.

    Each has two processors and a GPU, as far as Slurm knows.
    """

    def __init__(self, count: int, folder: Path) -> None:
        super().__init__(count, folder)
        found_out = ("RAY_", "GLOO_")  # by slurm.sh
        self.environment = {key: value for key, value in self.environment.items() if not key.startswith(found_out)}
        self.environment |= {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{self.environment['PATH']}:{PATH}"}
        self.daemons = ExitStack()

    def __enter__(self) -> "Slurm":
        (self.folder / "state").mkdir()
        (self.folder / "gres.conf").write_text(GPUS)
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        facts = {"name": socket.gethostname().partition(".")[0], "outside": self.outside, "port": free_port()}
        facts |= {"first": 1 + secrets.randbelow(10**6)}  # names of folders are made of it
        nodes = [
            f"NodeName=node{number} NodeHostname=node{number} NodeAddr={self.address(number)} CPUs=2 Gres=gpu:1\n"
            for number in range(1, self.count + 1)
        ]
        configuration = CONFIGURATION.format(folder=self.folder, **facts)
        (self.folder / "slurm.conf").write_text(configuration + "".join(nodes))
        try:
            self._start_munge()
            super().__enter__()
            self._daemon("slurmctld", "slurmctld", "-D")
            self._wait_until_idle()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.daemons.close()

    def begin(self, number: int) -> None:
        """Start slurmd on a host that has a name, which stands for its loopback there, as on Debian."""
        hosts = self.folder / f"hosts-{number}"
        hosts.write_text(f"127.0.0.1 localhost\n127.0.1.1 node{number}\n")
        named = ["unshare", "--uts", "sh", "-c", NAMED, f"node{number}", str(hosts)]
        with (self.folder / f"slurmd-{number}.log").open("wb") as log:
            slurmd = self._on(number, *named, "slurmd", "-D", "-N", f"node{number}")
            self.started.append(subprocess.Popen(slurmd, env=self.environment, stdout=log, stderr=log))

    def run(self, *command: str, cwd: Path | None = None, **variables: str) -> str:
        """Run a command of Slurm and return its output."""
        environment = {**self.environment, **variables}
        done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """Return what Slurm says about a job: JobState, ExitCode and so on."""
        said = self.run("scontrol", "--oneliner", "show", "job", number)
        return {name: value for name, _, value in (word.partition("=") for word in said.split())}

    def _start_munge(self) -> None:
        """Start munge, with which the daemons and commands of Slurm know each other."""
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = {"socket": "munge.socket", "pid-file": "munge.pid", "seed-file": "munge.seed"}
        options = [f"--{option}={self.folder / name}" for option, name in files.items()]
        self._daemon("munged", "munged", "--foreground", "--force", f"--key-file={key}", *options)

    def _daemon(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            daemon = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        self.daemons.callback(daemon.wait, 30)
        self.daemons.callback(daemon.terminate)

    def _wait_until_idle(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            listed = subprocess.run(
                ["sinfo", "--noheader", "--Node", "--format=%T"], env=self.environment, capture_output=True, text=True
            )
            if listed.stdout.split() == ["idle"] * self.count:
                return
            assert time.monotonic() < deadline, listed.stdout + listed.stderr
            time.sleep(0.2)
