"""Files and folders put in place: checked, whole or not at all."""

import hashlib
import os
import random

import pytest

from denoise.errors import UserError
from pipelines.storage.placing import atomic_folder, copy, link, write

BODY = random.Random(1).randbytes(1_000_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


def test_a_copy_is_checked_before_it_is_there(tmp_path):
    (tmp_path / "a").write_bytes(BODY)
    copy(tmp_path / "a", tmp_path / "folder" / "b", SHA256)
    assert (tmp_path / "folder" / "b").read_bytes() == BODY
    with pytest.raises(UserError, match="wrong checksum"):
        copy(tmp_path / "a", tmp_path / "c", "0" * 64)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "folder"]


def test_a_link_shares_the_file_behind_a_symbolic_link(tmp_path):
    (tmp_path / "a").write_bytes(BODY)
    (tmp_path / "to a").symlink_to("a")
    link(tmp_path / "to a", tmp_path / "b")
    assert (tmp_path / "b").samefile(tmp_path / "a")
    assert not (tmp_path / "b").is_symlink()


def test_a_write_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "a folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write(tmp_path / "a folder", BODY)
    assert [path.name for path in tmp_path.iterdir()] == ["a folder"]


@pytest.mark.parametrize("symbolic", [False, True])
def test_a_link_to_another_disk_becomes_a_copy_or_a_symbolic_link(tmp_path, monkeypatch, symbolic):
    def other_disk(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_disk)
    (tmp_path / "a").write_bytes(BODY)
    link(tmp_path / "a", tmp_path / "b", symbolic)
    assert (tmp_path / "b").read_bytes() == BODY
    assert (tmp_path / "b").is_symlink() is symbolic


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "raw" / "set" / "train"
    for content in ("first", "second"):
        with atomic_folder(folder) as fresh:
            (fresh / content).touch()
        assert [path.name for path in folder.iterdir()] == [content]

    def break_off():
        with atomic_folder(folder) as fresh:
            (fresh / "third").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        break_off()
    assert sorted(path.relative_to(tmp_path / "raw").as_posix() for path in (tmp_path / "raw").rglob("*")) == [
        "set",
        "set/train",
        "set/train/second",
    ]
