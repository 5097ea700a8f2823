"""The file of Ray's token: only its owner can read it."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from denoise.errors import UserError
from pipelines.cluster.auth import create_token, protect_token, token_file


@pytest.fixture
def token(tmp_path, monkeypatch) -> Path:
    """Return where the token is, of a user who has none yet and whose files others can read."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    before = os.umask(0)
    yield tmp_path / ".ray" / "auth_token"
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_token_is_private(token):
    create_token()
    assert mode(token) == 0o600
    assert mode(token.parent) == 0o700
    assert len(token.read_text()) == 64
    assert list(token.parent.iterdir()) == [token]
    first = token.read_text()
    create_token()
    assert token.read_text() == first


def test_a_token_that_others_can_read_becomes_private_with_a_line(token, capsys):
    token.parent.mkdir()
    token.write_text("0" * 64)
    assert mode(token) == 0o666
    create_token()
    assert mode(token) == 0o600
    assert token.read_text() == "0" * 64
    assert f"{token} could be read by other users" in capsys.readouterr().err
    protect_token()
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another user")
def test_the_token_of_another_user_is_refused(token, monkeypatch):
    create_token()
    os.chown(token, 12345, 12345)
    with pytest.raises(UserError, match="belongs to another user"):
        create_token()
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))  # a secret that Kubernetes mounts
    create_token()
    assert token.stat().st_uid == 12345


@pytest.mark.parametrize("variables", [{"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": "disabled"}])
def test_nothing_is_written_where_ray_needs_no_file(token, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    create_token()
    assert token_file() is None
    assert not token.exists()


def test_a_home_that_cannot_be_written_is_one_sentence(token):
    token.parent.write_text("no folder")
    with pytest.raises(UserError, match="RAY_AUTH_TOKEN_PATH"):
        create_token()


@pytest.mark.slow
def test_ray_takes_the_private_token(token):
    """Ray starts on this machine with the token that was written for it, and leaves its mode."""
    code = "from denoise.config import Config\nfrom pipelines.cluster.connect import ray_cluster\nimport os, stat\n"
    code += f"with ray_cluster(Config()):\n    mode = stat.S_IMODE(os.stat({str(token)!r}).st_mode)\nprint(oct(mode))"
    environment = {**os.environ, "HOME": str(token.parents[1]), "PYTHONPATH": str(Path(__file__).parents[3])}
    environment = {key: value for key, value in environment.items() if not key.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "0o600", done.stderr
    assert mode(token) == 0o600
