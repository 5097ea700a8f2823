import json

import pytest

from denoise.errors import UserError
from denoise.files import write_folder, write_json


def test_json_is_the_same_for_the_same_data_and_makes_its_folder(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"b": 1, "a": [1, 2]})
    write_json(tmp_path / "new" / "b.json", {"a": [1, 2], "b": 1})
    first, second = ((tmp_path / "new" / name).read_bytes() for name in ("a.json", "b.json"))
    assert first == second
    assert json.loads(first) == {"a": [1, 2], "b": 1}


def test_a_folder_replaces_the_older_one_whole(tmp_path):
    for text in ("old", "new"):
        write_folder(tmp_path / "folder", lambda work, text=text: (work / text).write_text(text) and None)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "new"]


def test_a_failure_leaves_what_was_there(tmp_path):
    write_folder(tmp_path / "folder", lambda work: (work / "old").write_text("old") and None)

    def fail(work):
        (work / "new").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="the disk is full"):
        write_folder(tmp_path / "folder", fail)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "old"]


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="could not be written"):
        write_json(tmp_path / "file" / "a.json", {})
    with pytest.raises(UserError, match="could not be written"):
        write_folder(tmp_path / "file" / "folder", lambda work: None)
