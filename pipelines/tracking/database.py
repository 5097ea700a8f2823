"""Addresses of SQLite databases, ``sqlite:///FILE``, in which ``%`` and ``?`` have a meaning, and Optuna reads ``{}``.

A folder is not an address: its name may hold any of these. MLflow and Optuna get the address of a file only from here.
"""

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote

from denoise.errors import UserError

ADDRESS = re.compile(r"sqlite(\+pysqlite)?:///(?P<path>.+?)(?P<options>\?\w+=[^/]*)?", re.DOTALL)  # ?timeout=30
SPECIAL = re.compile(r"[%?{}]")


def sqlite_uri(file: Path) -> str:
    """Return the address of a database file, whatever characters its path has.

    Raises:
        UserError: the path is not UTF-8; MLflow would write into another folder.
    """
    try:
        str(file).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"{str(file)!r} cannot hold a database, since its path is not UTF-8: rename the folder, or set "
            "tracking.uri and tune.storage to a database in another one."
        ) from None
    path = SPECIAL.sub(lambda match: quote(match[0]), str(file))
    # MLflow makes the parent folder of a sqlite:/// address without decoding it, but not where the driver is named.
    return f"sqlite:///{path}" if path == str(file) else f"sqlite+pysqlite:///{path}"


def sqlite_file(uri: str, root: Path | None = None) -> Path | None:
    """Return the database file of an address, None for any other uri.

    Where only the folder exists that is spelled like the address, that is meant: ``sqlite:////data/%41/mlflow.db`` is
    in ``/data/%41`` if there is no ``/data/A``.

    Args:
        uri: the address.
        root: the folder that a relative path starts from; by default the current one.
    """
    match = ADDRESS.fullmatch(uri)
    if match is None:
        return None
    base = root or Path()
    written, decoded = base / match["path"], base / unquote(match["path"])
    return written if written.parent.is_dir() and not decoded.parent.is_dir() else decoded


def absolute_sqlite_uri(uri: str, root: Path) -> str | None:
    """Return the address with an absolute path, relative to ``root``, and with its options; None for any other uri."""
    match, file = ADDRESS.fullmatch(uri), sqlite_file(uri, root.resolve())
    return sqlite_uri(file) + (match["options"] or "") if match and file else None


def moved_uri(uri: str, before: Path | None, now: Path) -> str:
    """Return the address of the database that is reached from ``now`` as the given one was from ``before``.

    The given address stays where there is no such database: a folder was moved out of its project then.

    Args:
        uri: any tracking uri; only those of sqlite databases change.
        before: absolute path of a folder when the address was written in it; None: runs/ray/NAME/journal, the default.
        now: absolute path of the same folder, or of a copy.
    """
    file = sqlite_file(uri)
    if file is None or before == now:
        return uri
    steps = os.path.relpath(file, before or file.parent.joinpath("runs", "ray", *now.parts[-2:]))
    moved = Path(os.path.normpath(now / steps))
    return sqlite_uri(moved) if moved.exists() else uri
