"""Servers whose certificate is not trusted, or that speak no TLS: one sentence at once, whatever is asked of them."""

import datetime
import io
import ipaddress
import ssl
import threading
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from denoise.errors import UserError
from pipelines.storage import base as storage
from pipelines.storage.http import HttpRemote, download
from pipelines.storage.remote import fetch_bytes, remote
from pipelines.storage.s3 import S3Remote
from tests.pipelines.mirror_helpers import Quiet, Site


class SecureSite:
    """A folder served over TLS with a certificate that the server has signed itself."""

    def __init__(self, folder: Path, certificate: Path, name: str) -> None:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
        sign(certificate, name)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.server.handle_error = lambda *_: None  # a client that does not trust us hangs up
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        self.url = f"https://127.0.0.1:{self.server.server_port}"

    def stop(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def sign(file: Path, name: str) -> None:
    """Write a key and its self-signed certificate for an IP address."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(1))
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(name))])
    builder = builder.add_extension(names, critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(key.private_bytes(*plain) + certificate)


@pytest.fixture
def secure(tmp_path, monkeypatch):
    """Serve a folder with a file; whoever tries again fails the test by its time."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(storage.time, "sleep", lambda _: pytest.fail("tried again"))
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "file").write_bytes(b"content")
    sites = []

    def start(name="127.0.0.1"):
        sites.append(SecureSite(tmp_path / "site", tmp_path / "certificate.pem", name))
        return sites[-1]

    yield start
    for site in sites:
        site.stop()


SELF_SIGNED = r"certificate of https://127\.0\.0\.1:\S* is not trusted \(self-signed certificate\).* REQUESTS_CA_BUNDLE"


def test_an_untrusted_certificate_is_a_sentence_and_trusted_it_is_used(secure, tmp_path, monkeypatch):
    url = secure().url
    with pytest.raises(UserError, match=SELF_SIGNED):
        download(f"{url}/file", tmp_path / "target")
    with pytest.raises(UserError, match=SELF_SIGNED):
        fetch_bytes(remote(url), "file")
    with pytest.raises(UserError, match=SELF_SIGNED):
        HttpRemote(url).receive("file", io.BytesIO(), 0)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "certificate.pem"))
    assert fetch_bytes(remote(url), "file") == b"content"
    assert download(f"{url}/file", tmp_path / "target").read_bytes() == b"content"


def test_a_certificate_of_another_host_is_a_sentence(secure, tmp_path, monkeypatch):
    url = secure("127.0.0.2").url
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "certificate.pem"))
    with pytest.raises(UserError, match=r"is not trusted \(IP address mismatch"):
        download(f"{url}/file", tmp_path / "target")


def test_an_untrusted_s3_server_is_a_sentence(secure, monkeypatch, tmp_path):
    site = secure()
    for name, value in {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "ENDPOINT_URL": site.url}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    bucket = S3Remote("s3://bucket/shards", "bucket", "shards")
    with pytest.raises(UserError, match=r"is not trusted \(self-signed certificate\).* AWS_CA_BUNDLE"):
        fetch_bytes(bucket, "file")
    with pytest.raises(UserError, match=r"AWS_CA_BUNDLE"):
        storage.with_retries(site.url, lambda: bucket.send(tmp_path / "site" / "file", "file"))


def test_a_server_without_tls_is_a_sentence(secure, tmp_path):
    site = Site(tmp_path)
    try:
        with pytest.raises(UserError, match=r"cannot be reached by TLS \(\S.*\); check the address and its port"):
            download(site.url.replace("http:", "https:") + "file", tmp_path / "target")
    finally:
        site.stop()


def test_a_fetch_from_an_untrusted_mirror_leaves_nothing(secure, tmp_path):
    from pipelines.datasets.fetch import fetch

    with pytest.raises(UserError, match=SELF_SIGNED):
        fetch("kodak", tmp_path / "data", mirror=secure().url)
    assert not list((tmp_path / "data").rglob("*.png"))
