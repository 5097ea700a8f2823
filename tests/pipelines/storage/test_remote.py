"""Against a real server of the S3 protocol, and a real web server."""

import functools
import http.server
import io
import socket
import threading

import pytest

from denoise.errors import UserError
from pipelines.storage import base as storage
from pipelines.storage import s3 as s3_module
from pipelines.storage.base import NotFoundError, TransientError, with_retries
from pipelines.storage.remote import fetch_bytes, remote, writable_remote
from tests.pipelines.s3_helpers import Network, s3_environment, up_when_missed

DATA = bytes(range(256)) * 5000


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(storage, "FIRST_PAUSE", 0.01)


@pytest.fixture
def server(s3):
    """The server, a file in its bucket."""
    s3.client().put_object(Bucket="bucket", Key="deep/prefix/file", Body=DATA)
    return s3


@pytest.fixture
def bucket(server, monkeypatch):
    with s3_environment(monkeypatch, server.port):
        yield remote("s3://bucket/deep/prefix")


@pytest.fixture
def site(tmp_path):
    (tmp_path / "file").write_bytes(DATA)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    handler.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield remote(f"http://127.0.0.1:{running.server_port}/")
        running.shutdown()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "file").write_bytes(DATA)
    return remote(str(tmp_path))


@pytest.fixture(params=["bucket", "site", "folder"])
def place(request):
    return request.getfixturevalue(request.param)


def test_a_file_is_received_whole_or_from_a_byte_on(place):
    assert fetch_bytes(place, "file") == DATA
    sink = io.BytesIO(DATA[:1000])
    sink.seek(1000)
    place.receive("file", sink, 1000)
    assert sink.getvalue() == DATA


def test_a_missing_file_is_not_found(place):
    with pytest.raises(NotFoundError, match="nothing does not exist"):
        fetch_bytes(place, "nothing")


def test_a_file_that_was_sent_is_received(bucket, tmp_path):
    for target in (bucket, remote(str(tmp_path / "folder"))):
        source = tmp_path / "source"
        source.write_bytes(DATA * 10)  # S3 takes it in parts
        target.send(source, "a/b")
        assert fetch_bytes(target, "a/b") == DATA * 10
        assert target.address.rstrip("/") == target.address


def test_objects_are_listed_by_prefix_over_all_pages_and_deleted(server, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(s3_module, "PAGE_SIZE", 2)
    (tmp_path / "source").write_bytes(b"x")
    names = [f"of/{number} +é" for number in range(5)]
    for name in (*names, "other"):
        bucket.send(tmp_path / "source", f"listed/{name}")
    assert bucket.list("listed/o") == [f"listed/{name}" for name in (*names, "other")]
    bucket.delete([f"listed/{name}" for name in (*names[1:], "nothing")])
    assert bucket.list("listed/of/") == [f"listed/{names[0]}"]
    with s3_environment(monkeypatch, server.port):
        assert f"deep/prefix/listed/{names[0]}" in remote("s3://bucket").list("deep/")
    assert bucket.list("listed/nothing") == []


@pytest.mark.parametrize("attempt", ["list", "delete", "send"])
def test_a_wrong_bucket_is_a_user_error_at_once(bucket, tmp_path, attempt):
    (tmp_path / "source").write_bytes(b"x")
    place = remote("s3://nowhere/prefix", "ray.storage")
    attempts = {
        "list": lambda: place.list("a"),
        "delete": lambda: place.delete(["a"]),
        "send": lambda: place.send(tmp_path / "source", "a"),
    }
    with pytest.raises(UserError, match=r"nowhere/prefix/a.*no such bucket; check ray\.storage and the credentials"):
        attempts[attempt]()


def test_a_web_site_cannot_be_written_to(site):
    with pytest.raises(UserError, match="can only be read"):
        writable_remote(site.address)


def test_transfers_cut_at_random_arrive(server, monkeypatch):
    network = Network(server.port, cut_share=0.6, seed=3)
    network.up()
    with s3_environment(monkeypatch, network.port):
        place = remote("s3://bucket/deep/prefix")
        for _ in range(8):
            assert fetch_bytes(place, "file") == DATA
    network.down()
    assert network.cuts


def test_an_unreachable_server_is_tried_again(server, monkeypatch):
    network = Network(server.port)
    messages = up_when_missed(network, monkeypatch)
    with s3_environment(monkeypatch, network.port):
        assert fetch_bytes(remote("s3://bucket/deep/prefix"), "file") == DATA
    network.down()
    assert messages[0].startswith("s3://bucket/deep/prefix/file: ")


def test_retries_end_with_a_user_error(monkeypatch):
    monkeypatch.setattr(storage, "PATIENCE", 0.02)
    with pytest.raises(UserError, match=r"there could not be transferred .* \(it is broken\)"):
        with_retries("there", lambda: (_ for _ in ()).throw(TransientError("it is broken")))


def test_a_server_that_never_answers_is_tried_again(monkeypatch):
    monkeypatch.setattr(storage, "PATIENCE", 0.2)
    monkeypatch.setattr("pipelines.storage.s3.TIMEOUT", 0.1)
    error = pytest.raises(UserError, match=r"s3://bucket/file could not be transferred .* timeout")
    with socket.create_server(("127.0.0.1", 0)) as silent, s3_environment(monkeypatch, silent.getsockname()[1]), error:
        fetch_bytes(remote("s3://bucket"), "file")


def test_no_bucket_and_no_credentials_are_user_errors(bucket, monkeypatch, tmp_path):
    with pytest.raises(UserError, match="there is no such bucket"):
        fetch_bytes(remote("s3://nowhere"), "file")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"needs credentials .*AWS_ACCESS_KEY_ID"):
        fetch_bytes(remote("s3://bucket"), "file")


@pytest.mark.parametrize("key", ["data.url", "ray.storage"])
@pytest.mark.parametrize(("url", "message"), [("s3://", "names no bucket"), ("ftp://host/x", "is not understood")])
def test_a_malformed_address_is_a_user_error(url, message, key):
    with pytest.raises(UserError, match=f"^{key}={url} {message}"):
        remote(url, *([key] if key != "data.url" else []))


def test_a_number_of_attempts_ends_with_the_last_error_and_no_message(capsys):
    failures = iter("abcd")

    def attempt():
        raise TransientError(next(failures))

    with pytest.raises(TransientError, match="c"):
        with_retries("there", attempt, 3)
    assert capsys.readouterr().err == ""
