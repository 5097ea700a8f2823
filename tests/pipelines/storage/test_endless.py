"""Servers and folders that send without end, ever more slowly, or more than the index says: bounded, one sentence."""

import hashlib
import json
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from denoise.config import load_config
from denoise.data.index import ShardFile
from denoise.data.shards import INDEX, DamagedError
from denoise.errors import UserError
from pipelines.datasets import catalog, fetch, imagenet, sync
from pipelines.datasets.layout import open_set
from pipelines.storage import base, http, request
from pipelines.storage.base import TooLargeError
from pipelines.storage.http import HttpRemote, download
from pipelines.storage.remote import fetch_bytes, remote
from tests.mutations import Victim

CHUNK = b"x" * (1 << 16)


class Site(BaseHTTPRequestHandler):
    """Sends bytes without end, unless ``files`` has the path."""

    files: dict = {}  # noqa: RUF012 - replaced by each test
    headers_of_endless: tuple = ()
    write = staticmethod(lambda out: out.write(CHUNK))

    def do_GET(self):
        body = self.files.get(self.path)
        self.send_response(200)
        for header in self.headers_of_endless if body is None else (("Content-Length", str(len(body))),):
            self.send_header(*header)
        self.end_headers()
        with suppress(OSError):
            if body is not None:
                self.wfile.write(body)
            while body is None and not self.server.stopping:
                self.write(self.wfile)

    def log_message(self, *_):
        """Keep quiet."""


@pytest.fixture
def site(monkeypatch):
    """Return the address of a server that sends without end, and its handler."""
    monkeypatch.setattr(base, "FIRST_PAUSE", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    handler = type("Handler", (Site,), {"files": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.stopping, server.daemon_threads = False, True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.stopping = True
    server.shutdown()
    thread.join()
    server.server_close()


HEADERS = [(), (("Content-Length", str(1 << 50)),), (("Transfer-Encoding", "chunked"),)]


def chunked(out):
    out.write(b"10000\r\n" + CHUNK + b"\r\n")


@pytest.mark.parametrize("headers", HEADERS, ids=["no length", "a lying length", "chunked"])
def test_a_download_without_end_stops_at_the_limit_and_leaves_nothing(site, tmp_path, headers):
    url, handler = site
    handler.headers_of_endless = headers
    if "chunked" in str(headers):
        handler.write = staticmethod(chunked)
    with pytest.raises(TooLargeError, match=r"sends more than the 1000000 bytes"):
        download(f"{url}/file", tmp_path / "file", limit=1_000_000)
    assert list(tmp_path.iterdir()) == []


def test_a_chunk_header_without_end_does_not_fill_the_memory(site, tmp_path):
    url, handler = site
    handler.headers_of_endless = (("Transfer-Encoding", "chunked"),)
    handler.write = staticmethod(lambda out: out.write(b"0" * 65536))
    with pytest.raises(UserError, match="cannot download"):
        download(f"{url}/file", tmp_path / "file", limit=1_000_000)


def test_a_length_of_many_digits_is_none(site, tmp_path):
    url, handler = site
    handler.headers_of_endless = (("Content-Length", "9" * 9000),)
    with pytest.raises(TooLargeError):
        download(f"{url}/file", tmp_path / "file", limit=1_000_000)
    assert http.size_of(f"{url}/file") is None


def test_a_server_that_drips_is_given_up(site, tmp_path, monkeypatch):
    monkeypatch.setattr(request, "SLOW_SECONDS", 0.2)
    url, handler = site

    def drip(out):
        out.write(b"x")
        time.sleep(0.02)

    handler.write = staticmethod(drip)
    with pytest.raises(UserError, match=r"the server sent only \d+ bytes in 0 s"):
        download(f"{url}/file", tmp_path / "file")


@pytest.mark.parametrize("name", ["kodak", "bsds300", "imagenet"])
def test_a_mirror_without_end_is_one_sentence(site, tmp_path, monkeypatch, name):
    monkeypatch.setattr(fetch, "ARCHIVE_LIMIT", 1_000_000)
    monkeypatch.setattr(imagenet, "LARGEST_SUMS", 1_000_000)
    monkeypatch.setattr(http.download, "__kwdefaults__", {"limit": 1_000_000})
    url, _ = site
    with pytest.raises(UserError, match="sends more than the 1000000 bytes"):
        fetch.fetch(name, tmp_path, mirror=url)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*")) < 2_000_000


def test_an_index_without_end_is_one_sentence(site):
    url, _ = site
    with pytest.raises(TooLargeError, match=r"sends more than the 500000 bytes"):
        fetch_bytes(HttpRemote(url), "index.json", 500_000)


@pytest.fixture
def served(site, small_shards, tmp_path, monkeypatch):
    """Return the configuration of a set on the server, its files, and a cache of its own."""
    url, handler = site
    handler.files = {f"/train/small/{path.name}": path.read_bytes() for path in small_shards.iterdir()}
    monkeypatch.setenv("DENOISE_CACHE", str(tmp_path / "cache"))
    config = load_config(None, [f"data.url={url}", f"data.root={tmp_path / 'data'}"])
    return config, handler.files


@pytest.mark.parametrize("file", ["000000.tar", "000000.json"])
def test_a_shard_without_end_stops_at_the_size_that_the_index_says(served, file, tmp_path):
    config, files = served
    del files[f"/train/small/{file}"]
    with pytest.raises(DamagedError, match=r"has more than the \d+ bytes of the index; push the set again"):
        open_set(config, "train", "small").pixels(0)
    with pytest.raises(UserError, match=r"sends more than the \d+ bytes"):
        sync.pull(config, "small", "train")
    assert [problem for problem in sync.verify(config, "small", "train") if "more than the" in problem]
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 2_000_000


@pytest.mark.parametrize("key", ["sha256", "samples_sha256", "file"])
def test_an_index_cannot_name_a_file_of_the_users(served, key, tmp_path):
    config, files = served
    victim, index = Victim(tmp_path), json.loads(files[f"/train/small/{INDEX}"])
    for name in victim.names():
        index["shards"][0][key] = name
        files[f"/train/small/{INDEX}"] = json.dumps(index).encode()
        for read in (
            lambda: open_set(config, "train", "small").pixels(0),
            lambda: sync.pull(config, "small", "train"),
            lambda: sync.verify(config, "small", "train"),
        ):
            with pytest.raises(DamagedError, match="entries that describe no shard"):
                read()
    assert victim.is_there()


def test_the_cache_reads_and_removes_nothing_outside_its_folder(served, tmp_path):
    from pipelines.storage.shard_cache import ShardCache

    config, _ = served
    victim = Victim(tmp_path)
    cache = ShardCache(remote(str(config.data.url)), "train/small", tmp_path / "cache", 1 << 30)
    for name in victim.names():
        for use in (
            cache.drop,
            lambda file: cache.read(file, 0, 9),
            lambda file: cache.announce([file]),
        ):
            with pytest.raises(DamagedError, match="no sha256"):
                use(ShardFile("x", 1, name))
    assert victim.is_there()


def test_the_cache_counts_and_removes_only_its_own_files(served, tmp_path):
    config, files = served
    folder = tmp_path / "cache" / "shards"
    folder.mkdir(parents=True)
    others = ["thesis.txt", "x.part", "a.b.part", f"{'0' * 64}.x.part", "photo.tar"]
    for name in others:
        (folder / name).write_bytes(b"x" * 100_000)
    sizes = sorted(len(data) for name, data in files.items() if name.endswith(".tar"))
    tight = load_config(None, [f"data.url={config.data.url}", f"data.disk_gb={(sizes[-1] + 20_000) / 1e9}"])
    shards = open_set(tight, "train", "small")
    for index in range(len(shards)):
        shards.pixels(index)
    assert all((folder / name).is_file() for name in others)


def test_an_endless_bucket_is_bounded_too(tmp_path):
    (tmp_path / "there").mkdir()
    with (tmp_path / "there" / "index.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(TooLargeError):
        fetch_bytes(remote(str(tmp_path / "there")), "index.json", 3 << 20)


def test_checksums_of_a_mirror_have_their_form(tmp_path):
    good = hashlib.sha256(b"").hexdigest()
    assert catalog.parse_checksums(f"{good}  imagenet/a.png", "SHA256SUMS") == {"imagenet/a.png": good}
    for line in (f"{'x' * 64}  a.png", f"{good}  a\0b", f"{good}  ../a", f"{good}  /a", f"{good}  ", "7"):
        with pytest.raises(UserError, match="no list of checksums"):
            catalog.parse_checksums(line, "SHA256SUMS")
    (tmp_path / "SHA256SUMS").write_bytes(b"\xff\xfe")
    (tmp_path / "imagenet" / "train").mkdir(parents=True)
    with pytest.raises(UserError, match="not text in UTF-8"):
        imagenet._imagenet_source(tmp_path, "train", tmp_path)
