"""Passwords of addresses are hidden in texts, errors and recorded configurations."""

import json

import pytest

from denoise.config import load_config, recorded
from denoise.errors import UserError, first_line
from denoise.redaction import has_password, redacted, without_passwords

SECRET = "TOPSECRET"
WITH_SECRET = [
    f"postgresql://me:{SECRET}@host/db",
    f"postgresql+psycopg://me:{SECRET}/pa@ss@host/db",
    f"postgresql://me:12/{SECRET}@host/db",
    f"postgresql://me:a b '{SECRET}\n@host/db",
    f"postgresql://host/db?user=me&password={SECRET}",
    f"https://me:{SECRET}@mirror.example/d",
    f"https://me:p/{SECRET}@mirror.example/d",
    f"https://{SECRET}@mirror.example/d",
    f"https://mirror.example/d?access_token={SECRET}&x=1",
    f"s3://bucket/key?X-Amz-Signature={SECRET}",
    f"s3://AKIA:12/{SECRET}@bucket/prefix",
    f"https://me@corp:{SECRET}@mirror.example/d",
    f"tune.storage=postgresql://me:a b {SECRET}@host/db",
    f"postgresql://me@corp:{SECRET}@host/db",
    f"mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3D{SECRET}",
    f"see http://a:{SECRET}@b/c, and mysql://d:{SECRET}@e/f.",
]
WITHOUT = [
    "sqlite:///mlflow.db",
    "http://host:8080/image@2x.png",
    "models:/denoise-gauss25@champion",
    "s3://bucket/prefix",
    "postgresql:///mlflow",
    "postgresql://denoise@postgres:5432/optuna",
    "sqlite:////home/me@work/mlflow.db",
    "file:///home/me@work/mirror",
    "s3://bucket/a@b",
    "write to me@example.org, see https://example.org/?page=2",
]


@pytest.mark.parametrize("text", WITH_SECRET)
def test_no_password_remains(text: str) -> None:
    assert has_password(text)
    assert SECRET not in without_passwords(text)
    assert without_passwords(without_passwords(text)) == without_passwords(text)
    assert SECRET not in json.dumps(redacted({"a": [text, {"b": text}]}))
    assert SECRET not in str(UserError(text))
    assert SECRET not in first_line(ValueError(text))


@pytest.mark.parametrize("text", WITHOUT)
def test_text_without_password_stays(text: str) -> None:
    assert without_passwords(text) == text
    assert not has_password(text)


def test_host_and_database_remain_readable() -> None:
    assert without_passwords("postgresql://me:pw@host:5432/db") == "postgresql://***@host:5432/db"


def test_recorded_configuration_holds_no_password() -> None:
    keys = ("tracking.uri", "tune.storage", "data.mirror", "data.url")
    config = load_config(None, [f"{key}={WITH_SECRET[0]}" for key in keys])
    assert SECRET in config.tracking.uri
    assert SECRET not in json.dumps(recorded(config))
