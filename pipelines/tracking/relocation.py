"""A project that was moved or copied: the paths in its database lead to the images and models beside it again.

MLflow stores absolute paths: left alone, a moved project would write into its old folder, and a copy into the original.
"""

import fcntl
import os
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from denoise.errors import UserError
from denoise.files import exclusive_lock

ARTIFACTS = "mlartifacts"  # our images and models, beside the database
FOLDERS = (ARTIFACTS, "mlruns")  # mlruns: where MLflow itself puts those of its experiment "Default"
LOCATIONS = (  # the columns of MLflow's tables that hold paths of files
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def relocate(database: Path) -> bool:
    """Set the paths of a database that was moved or copied to where it is now, say so, and return whether it was.

    The caller holds the database's lock. Nothing changes while another process uses the database (``in_use``), which
    may be the same folder, seen by a container or by another machine under another path.

    Args:
        database: absolute path of MLflow's database.

    Raises:
        UserError: the images and models did not come along, or the database is in use.
    """
    new = database.with_name(ARTIFACTS)
    with closing(sqlite3.connect(database, timeout=20)) as connection:
        earlier = [old for old in _artifact_folders(connection) if _is_elsewhere(old, new)]
        if not earlier:
            return False
        for old in earlier:
            if not new.exists() and old.is_dir() and any(old.iterdir()):
                raise UserError(
                    f"{database} was moved or copied without its images and models: copy {old} to {new}, or go on with "
                    f"the database that is beside {old}."
                )
        try:
            with exclusive_lock(_use_file(database), blocking=False), connection:
                for old in earlier:
                    _replace_folder(connection, old.parent, new.parent)
        except BlockingIOError:
            raise UserError(
                f"{database} is in use where it is called {earlier[0].with_name(database.name)}, by a run or by "
                "`denoise ui`: wait for that to end, or work there."
            ) from None
    print(f"note: {database} was in {earlier[0].parent}; its images and models are now in {new}.", file=sys.stderr)
    return True


def add_default_experiment(database: Path, artifacts: Path) -> None:
    """Create MLflow's experiment 0 in a new database, with its files in ``artifacts``.

    MLflow itself would put them below the current folder, and fails where the path of that has both kinds of quotes.
    """
    columns = "experiment_id, name, artifact_location, lifecycle_stage, creation_time, last_update_time"
    with closing(sqlite3.connect(database)) as connection, connection:
        now = int(time.time() * 1000)
        connection.execute(
            f"INSERT INTO experiments ({columns}) VALUES (0, 'Default', ?, 'active', ?, ?)",  # noqa: S608 - ours
            (artifacts.as_uri(), now, now),
        )


@contextmanager
def in_use(database: Path) -> Iterator[None]:
    """Keep the paths in a database as they are while the block runs; any number of processes may do so."""
    handle = os.open(_use_file(database), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def _use_file(database: Path) -> Path:
    return database.with_name(f"{database.name}.in-use")


def _artifact_folders(connection: sqlite3.Connection) -> list[Path]:
    """Return the folders of our experiments, one unless the database was edited by hand."""
    query = "SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location LIKE 'file:%/' || ?"
    return [Path(unquote(urlsplit(location).path)) for (location,) in connection.execute(query, (ARTIFACTS,))]


def _is_elsewhere(old: Path, new: Path) -> bool:
    """Return whether two paths are not the same folder, which may have several through links and mounts."""
    return old != new and not (old.exists() and new.exists() and old.samefile(new))


def _replace_folder(connection: sqlite3.Connection, old: Path, new: Path) -> None:
    """Let every location below ``old`` lead to the same place below ``new``."""
    for table, column in LOCATIONS:
        for name in FOLDERS:
            for before, after in ((old.as_uri(), new.as_uri()), (str(old), str(new))):
                connection.execute(
                    f"UPDATE {table} SET {column} = :after || substr({column}, length(:before) + 1) "  # noqa: S608 - ours
                    f"WHERE {column} = :before OR substr({column}, 1, length(:before) + 1) = :before || '/'",
                    {"before": f"{before}/{name}", "after": f"{after}/{name}"},
                )
