"""A real PostgreSQL server, as a site has one for Optuna and MLflow."""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.pipelines.mlflow_helpers import free_port

USER = "denoise"
START_SECONDS = 60


def _programs() -> Path | None:
    """Return the folder of PostgreSQL's programs: Debian keeps them beside the version, out of PATH."""
    found = shutil.which("initdb")
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return Path(found).resolve().parent if found else versions[-1].parent if versions else None


class Postgres:
    """A server with the databases that were asked for; only the password opens it."""

    def __init__(self, address: str, *databases: str) -> None:
        programs = _programs()
        if programs is None:
            pytest.skip("needs PostgreSQL: apt-get install postgresql")
        self.programs, self.address, self.port, self.databases = programs, address, free_port(), databases
        self.password = secrets.token_hex(8)

    def new(self) -> str:
        """Return the address of a new database."""
        name = f"d{secrets.token_hex(4)}"
        self._create([name])
        return self.uri(name)

    def uri(self, database: str) -> str:
        return f"postgresql://{USER}:{self.password}@{self.address}:{self.port}/{database}"

    def __enter__(self) -> "Postgres":
        # It refuses to run as root, and its own user may not enter pytest's folders.
        self.folder = Path(tempfile.mkdtemp(prefix="denoise-postgres-"))
        self.account = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
        secret = self.folder / "password"
        secret.write_text(self.password)
        if self.account:
            owner = pwd.getpwnam("postgres")
            for path in (self.folder, secret):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        data = str(self.folder / "data")
        self._run("initdb", "-D", data, "-A", "scram-sha-256", "-U", USER, f"--pwfile={secret}", "--no-sync")
        (self.folder / "data" / "pg_hba.conf").write_text("host all all all scram-sha-256\n")
        options = ["-h", self.address, "-p", str(self.port), "-k", str(self.folder)]
        self.process = subprocess.Popen(
            [self.programs / "postgres", "-D", data, *options], stderr=subprocess.DEVNULL, cwd="/", **self.account
        )
        try:
            self._create(self.databases)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGINT)  # its fast shutdown
        self.process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _create(self, names: Sequence[str]) -> None:
        import psycopg

        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                with psycopg.connect(self.uri("postgres"), autocommit=True) as connection:
                    for name in names:
                        connection.execute(f'CREATE DATABASE "{name}"')
                return
            except psycopg.OperationalError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run([self.programs / program, *arguments], check=True, capture_output=True, cwd="/", **self.account)
