"""What the tests of fetching share."""

import hashlib
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Quiet(SimpleHTTPRequestHandler):
    """A plain file server that logs no line."""

    def log_message(self, *_):
        """Keep quiet."""


class Site:
    """A folder served at ``url`` until it is stopped."""

    def __init__(self, folder: Path) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/"

    def stop(self) -> None:
        """Stop the server, for good."""
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def copy_some(mirror: Path, folder: Path) -> None:
    """Copy kodak and some ImageNet images of a mirror, with their SHA256SUMS."""
    shutil.copytree(mirror / "kodak", folder / "kodak")
    for split in ("train", "val"):
        for source in sorted((mirror / "imagenet" / split).iterdir())[:4]:
            shutil.copytree(source, folder / "imagenet" / split / source.name)
    lines = [line for line in (mirror / "SHA256SUMS").read_text().splitlines() if (folder / line[66:]).is_file()]
    (folder / "SHA256SUMS").write_text("\n".join(lines))
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)  # the source may be read-only


def digests(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def in_raw(root):
    """What is below raw, folders and hidden ones included."""
    return sorted(path.relative_to(root / "raw").as_posix() for path in (root / "raw").rglob("*"))
