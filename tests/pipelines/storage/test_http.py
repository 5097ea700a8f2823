"""Downloads from a real server that cuts connections, ignores ranges, sends wrong bytes."""

import gzip
import hashlib
import io
import random
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from denoise.errors import UserError
from pipelines.storage import base as storage
from pipelines.storage.base import NotFoundError, TransientError
from pipelines.storage.http import HttpRemote, download, download_all, read_text, size_of

BODY = random.Random(1).randbytes(1_000_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
ETAG = '"first"'


@dataclass
class Site:
    """What the server holds and how it misbehaves; ``requests`` lists the headers of each."""

    files: dict = field(default_factory=lambda: {"/file": BODY})
    headers: dict = field(default_factory=lambda: {"ETag": ETAG})
    cuts: list = field(default_factory=list)  # send only so many bytes of the next bodies
    statuses: list = field(default_factory=list)  # answer the next requests so
    ranges: bool = True
    shift: int = 0  # bytes by which a range begins too late
    requests: list = field(default_factory=list)
    url: str = ""

    def handler(site):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                site.requests.append(dict(self.headers))
                status = site.statuses.pop(0) if site.statuses else 200 if self.path in site.files else 404
                body = site.files.get(self.path, b"") if status == 200 else b""
                start = 0
                validator = self.headers.get("If-Range")
                if site.ranges and "Range" in self.headers and validator in (None, *site.headers.values()):
                    start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-")) + site.shift
                    status = 206 if start < len(body) else 416
                self.send_response(status)
                if status == 206:
                    self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
                for name, value in site.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body) - start if status in (200, 206) else 0))
                self.end_headers()
                if self.command == "GET" and status in (200, 206):
                    end = start + site.cuts.pop(0) if site.cuts else len(body)
                    self.wfile.write(body[start:end])

            do_HEAD = do_GET

            def log_message(self, *_):
                """Keep quiet."""

        return Handler


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setattr(storage, "FIRST_PAUSE", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    site = Site()
    with ThreadingHTTPServer(("127.0.0.1", 0), site.handler()) as server:
        site.url = f"http://127.0.0.1:{server.server_port}/file"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield site
        server.shutdown()
        thread.join()


def ranges(site):
    return [headers.get("Range") for headers in site.requests]


def leftovers(target):
    return sorted(path.name for path in target.parent.iterdir() if path != target)


def test_a_whole_file_arrives_and_nothing_else(site, tmp_path):
    target, counted = tmp_path / "deep" / "file", []
    assert download(site.url, target, SHA256, counted.append) == target
    assert target.read_bytes() == BODY
    assert sum(counted) == len(BODY) == size_of(site.url)
    assert leftovers(target) == []


def test_a_broken_download_is_resumed(site, tmp_path):
    site.cuts, counted = [300_000, 200_000], []
    download(site.url, tmp_path / "file", SHA256, counted.append)
    assert (tmp_path / "file").read_bytes() == BODY
    assert ranges(site) == [None, "bytes=300000-", "bytes=500000-"]
    assert site.requests[1]["If-Range"] == ETAG
    assert sum(counted) == len(BODY)


def test_the_next_call_resumes_what_an_earlier_one_left(site, tmp_path):
    target = tmp_path / "file"
    site.cuts = [100_000] * 4
    with pytest.raises(UserError, match=r"cannot download .*--mirror") as error:
        download(site.url, target, SHA256)
    assert "\n" not in str(error.value)
    assert not target.exists()
    site.requests.clear()
    download(site.url, target, SHA256)
    assert ranges(site) == ["bytes=400000-"]
    assert target.read_bytes() == BODY
    assert leftovers(target) == []


def test_what_a_broken_download_leaves_holds_no_password_and_another_one_continues_it(site, tmp_path):
    target, address = tmp_path / "file", site.url.replace("://", "://me:TOPSECRET@")
    site.files = {f"/file?token=TOPSECRET{number}": BODY for number in (1, 2)}
    site.cuts = [100_000] * 4
    with pytest.raises(UserError) as error:
        download(f"{address}?token=TOPSECRET1", target, SHA256)
    assert "TOPSECRET" not in str(error.value)
    assert leftovers(target) == ["file.part", "file.part.json"]
    assert "TOPSECRET" not in (tmp_path / "file.part.json").read_text()
    site.requests.clear()
    download(f"{address}?token=TOPSECRET2", target, SHA256)
    assert ranges(site) == ["bytes=400000-"]


def test_a_last_modified_date_is_used_without_a_strong_etag(site, tmp_path):
    site.headers = {"ETag": 'W/"weak"', "Last-Modified": "Sat, 21 Nov 2020 01:00:00 GMT"}
    site.cuts = [300_000]
    download(site.url, tmp_path / "file", SHA256)
    assert site.requests[1]["If-Range"] == site.headers["Last-Modified"]


@pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"weak"'}, {"ETag": ETAG, "Accept-Ranges": "none"}])
def test_a_download_that_cannot_be_resumed_safely_starts_again(site, tmp_path, headers):
    site.headers, site.cuts, counted = headers, [300_000], []
    download(site.url, tmp_path / "file", SHA256, counted.append)
    assert ranges(site) == [None, None]
    assert (tmp_path / "file").read_bytes() == BODY
    assert sum(counted) == len(BODY)


def test_a_server_that_ignores_ranges_sends_all_again(site, tmp_path):
    site.ranges, site.cuts, counted = False, [300_000], []
    download(site.url, tmp_path / "file", SHA256, counted.append)
    assert ranges(site) == [None, "bytes=300000-"]
    assert (tmp_path / "file").read_bytes() == BODY
    assert sum(counted) == len(BODY)


def test_two_versions_of_a_file_are_never_mixed(site, tmp_path):
    site.cuts = [300_000] + [0] * 3
    with pytest.raises(UserError):
        download(site.url, tmp_path / "file")
    other = random.Random(2).randbytes(500_000)
    site.files["/file"], site.headers["ETag"] = other, '"second"'
    download(site.url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == other


@pytest.mark.parametrize("size", [300_000, 1_500_000], ids=["damaged", "too long"])
def test_a_bad_part_is_discarded(site, tmp_path, size):
    site.cuts = [300_000] + [0] * 3
    with pytest.raises(UserError):
        download(site.url, tmp_path / "file", SHA256)
    (tmp_path / "file.part").write_bytes(bytes(size))
    counted = [size]
    download(site.url, tmp_path / "file", SHA256, counted.append)
    assert (tmp_path / "file").read_bytes() == BODY
    assert sum(counted) == len(BODY)


def test_wrong_bytes_are_refused_and_removed(site, tmp_path):
    site.files["/file"] = bytes([BODY[0] ^ 1]) + BODY[1:]
    got = hashlib.sha256(site.files["/file"]).hexdigest()
    with pytest.raises(UserError, match=f"/file has the wrong checksum .expected sha256 {SHA256}, got {got}"):
        download(site.url, tmp_path / "file", SHA256)
    assert list(tmp_path.iterdir()) == []


def test_only_transient_statuses_are_tried_again(site, tmp_path):
    site.statuses = [503, 429]
    download(site.url, tmp_path / "file", SHA256)
    assert len(site.requests) == 3
    site.statuses = [403]
    with pytest.raises(UserError, match="answered 403"):
        download(site.url, tmp_path / "other")
    with pytest.raises(NotFoundError, match="nothing does not exist"):
        download(site.url.replace("/file", "/nothing"), tmp_path / "other")
    assert len(site.requests) == 5
    assert size_of(site.url.replace("/file", "/nothing")) is None


def test_an_unreachable_host_is_one_sentence(site, tmp_path):
    with pytest.raises(UserError, match=r"http://127.0.0.1:1/x .*Connection refused.*--mirror") as error:
        download("http://127.0.0.1:1/x", tmp_path / "x")
    assert "\n" not in str(error.value)
    assert size_of("http://127.0.0.1:1/x") is None


def test_a_tgz_is_stored_as_sent_even_if_the_server_calls_it_encoded(site, tmp_path):
    site.files["/file"], site.headers = gzip.compress(BODY), {"Content-Encoding": "x-gzip"}
    download(site.url, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == site.files["/file"]
    assert site.requests[0]["Accept-Encoding"] == "identity"


def test_many_files_arrive_together(site, tmp_path):
    site.files = {f"/{i}": BODY[i : i + 999] for i in range(50)}
    base, counted = site.url.removesuffix("/file"), []
    files = [(base + name, tmp_path / name[1:], hashlib.sha256(data).hexdigest()) for name, data in site.files.items()]
    download_all(files, counted.append)
    assert sum(counted) == 50
    assert all((tmp_path / name[1:]).read_bytes() == data for name, data in site.files.items())


def test_the_first_missing_file_ends_it(site, tmp_path):
    site.files = {"/0": b"", "/2": b""}
    files = [(site.url.replace("file", str(i)), tmp_path / str(i), hashlib.sha256(b"").hexdigest()) for i in range(3)]
    with pytest.raises(NotFoundError, match="/1 does not exist"):
        download_all(files, lambda _: None)
    assert not (tmp_path / "1").exists()


def test_a_text_is_read(site):
    site.files["/file"] = "größer\n".encode()
    assert read_text(site.url) == "größer\n"


def test_a_range_that_was_not_asked_for_starts_again(site, tmp_path):
    site.cuts, site.shift = [300_000], 7
    download(site.url, tmp_path / "file", SHA256)
    assert ranges(site) == [None, "bytes=300000-", None]
    assert (tmp_path / "file").read_bytes() == BODY


def test_an_address_that_is_none_is_not_tried_again(site, tmp_path):
    with pytest.raises(UserError, match="cannot download http://:80/x .*--mirror"):
        download("http://:80/x", tmp_path / "x")


@pytest.mark.parametrize("location", ["http://[::1", "file:///etc/hostname", "/file"], ids=["broken", "file", "loop"])
def test_a_redirect_to_what_cannot_be_fetched_is_one_sentence(site, tmp_path, location):
    site.statuses, site.headers = [302] * 80, {"Location": location}
    with pytest.raises(UserError, match="cannot download .*--mirror"):
        download(site.url, tmp_path / "file")
    assert size_of(site.url) is None
    assert leftovers(tmp_path / "file") == []


def receive(site, held):
    """Receive a file of which some bytes are there, in one attempt."""
    file = io.BytesIO(held)
    file.seek(len(held))
    try:
        HttpRemote(site.url.removesuffix("/file")).receive("file", file, len(held))
    except TransientError as error:
        return str(error), file.getvalue()
    return "", file.getvalue()


def test_a_remote_file_is_received_from_a_byte_on(site):
    assert receive(site, BODY[:300_000]) == ("", BODY)
    assert ranges(site) == ["bytes=300000-"]
    assert site.requests[0]["Accept-Encoding"] == "identity"


def test_a_broken_transfer_of_a_remote_keeps_what_arrived(site):
    site.cuts = [200_000]
    error, data = receive(site, BODY[:300_000])
    assert error
    assert data == BODY[:500_000]


@pytest.mark.parametrize(("held", "shift"), [(bytes(1_500_000), 0), (BODY[:300_000], 7)], ids=["too long", "shifted"])
def test_a_remote_that_cannot_continue_empties_the_file(site, held, shift):
    site.shift = shift
    error, data = receive(site, held)
    assert error in ("the file changed on the server", "the server sent another part than the one asked for")
    assert data == b""


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        (403, UserError, r"answered 403 Forbidden\): check data\.url"),
        (404, NotFoundError, r"/file does not exist .*check data\.url"),
        (503, TransientError, "answered 503"),
    ],
)
def test_a_remote_sorts_statuses_as_a_download_does(site, status, error, message):
    site.statuses = [status]
    with pytest.raises(error, match=message):
        HttpRemote(site.url.removesuffix("/file")).receive("file", io.BytesIO(), 0)
