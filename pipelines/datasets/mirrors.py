"""A mirror: a folder or an address that a data set is brought from."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from denoise.errors import UserError


def local(mirror: str | Path) -> Path | None:
    """Return the path of a mirror, None for an address; a path that does not exist is a UserError."""
    address = urlsplit(str(mirror))
    if address.scheme in ("http", "https"):
        return None
    if "://" in str(mirror) and address.scheme != "file":
        raise UserError(f"the mirror {mirror} cannot be read: give a folder or an address that starts with http(s)://")
    path = Path(unquote(address.path) if address.scheme == "file" else mirror).expanduser()
    if not path.exists():
        raise UserError(f"the mirror {mirror} does not exist: give the path of a folder that holds the set")
    return path


def lock(root: Path, name: str) -> Path:
    """Return the lock file that keeps two fetches of a data set apart."""
    return root / "downloads" / f"{name}.lock"
