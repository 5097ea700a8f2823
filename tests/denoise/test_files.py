import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from denoise.errors import UserError
from denoise.files import (
    atomic_file,
    atomic_folder,
    exclusive_lock,
    fitting_name,
    has_digest,
    json_line,
    json_text,
    link_or_copy,
    lock_folder,
    refuse_foreign,
    remove,
    require_name,
    write_folder,
    write_json,
)

pytestmark = pytest.mark.smoke


def test_json_is_the_same_for_the_same_data_and_makes_its_folder(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"b": 1, "a": [1, 2]})
    write_json(tmp_path / "new" / "b.json", {"a": [1, 2], "b": 1})
    first, second = ((tmp_path / "new" / name).read_bytes() for name in ("a.json", "b.json"))
    assert first == second
    assert json.loads(first) == {"a": [1, 2], "b": 1}


def test_json_has_no_numbers_that_json_does_not_know(tmp_path):
    tree = {"psnr": math.inf, "images": [{"psnr": -math.inf}, (math.nan, 1.5, "inf", None, True)]}
    expected = {"psnr": None, "images": [{"psnr": None}, [None, 1.5, "inf", None, True]]}
    write_json(tmp_path / "a.json", tree)
    for text in ((tmp_path / "a.json").read_text(), json_text(tree), json_line(tree)):
        assert json.loads(text, parse_constant=pytest.fail) == expected


@pytest.mark.parametrize("name", ["a" * 255, "雪" * 85, "a" * 65, "b.png"])
def test_any_name_that_the_file_system_takes_can_be_written(tmp_path, name):
    """Temporary names are no longer than a long name, and two long names have two of them."""
    work_names = set()
    for path in (tmp_path / name, tmp_path / f"{name[:-1]}z"):
        with atomic_file(path) as work:
            work_names.add(work.name)
            work.write_text("whole")
        assert path.read_text() == "whole"
        path.unlink()
        write_folder(path, lambda work: (work / "inner").write_text("whole") and None)
        write_folder(path, lambda work: (work / "inner").write_text("again") and None)
        assert (path / "inner").read_text() == "again"
    assert len(work_names) == 2
    assert max(len(os.fsencode(work)) for work in work_names) <= max(90, len(os.fsencode(name)))


@pytest.mark.parametrize("name", ["a.png", "a" * 250, "雪" * 83, os.fsdecode(b"\xe9" * 250)])
def test_a_name_with_an_end_fits_the_file_system(tmp_path, name):
    names = {fitting_name(stem, "-restored.png") for stem in (name, name + "b", name + "c")}
    assert len(names) == 3
    for fitting in names:
        (tmp_path / fitting).write_text("")
        assert fitting.endswith("-restored.png")
    assert fitting_name("a", "-restored.png") == "a-restored.png"


def test_a_folder_replaces_the_older_one_whole(tmp_path):
    for text in ("old", "new"):
        write_folder(tmp_path / "folder", lambda work, text=text: (work / text).write_text(text) and None)
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "new"]


def test_a_failed_folder_leaves_the_older_one(tmp_path):
    write_folder(tmp_path / "folder", lambda work: (work / "old").write_text("old") and None)

    def fail(work):
        (work / "new").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="the disk is full"):
        write_folder(tmp_path / "folder", fail)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "old"]


def test_a_path_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="could not be written"):
        write_json(tmp_path / "file" / "a.json", {})
    with pytest.raises(UserError, match="could not be written"):
        write_folder(tmp_path / "file" / "folder", lambda work: None)


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_file_replaces_the_older_one_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    with atomic_file(path) as work:
        work.write_text("first")
        assert not path.exists()

    def fail():
        with atomic_file(path) as work:
            work.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "first"
    assert tree(tmp_path) == ["file"]


def test_a_temporary_path_of_its_own_is_emptied_first(tmp_path):
    (tmp_path / "work").write_text("left by a killed process")
    with atomic_file(tmp_path / "file", tmp_path / "work") as work:
        assert not work.exists()
        work.write_text("new")
    assert tree(tmp_path) == ["file"]


def test_a_file_in_the_place_of_a_folder_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()

    def fail():
        with atomic_file(tmp_path / "folder") as work:
            work.write_text("half")

    with pytest.raises(IsADirectoryError):
        fail()
    assert tree(tmp_path) == ["folder"]


def test_a_folder_with_a_work_folder_is_replaced_whole_or_not_at_all(tmp_path):
    folder, work_path = tmp_path / "raw" / "train" / "set", tmp_path / "raw" / ".train-set.new"
    for content in ("first", "second"):
        with atomic_folder(folder, work_path) as work:
            (work / content).touch()
        assert tree(folder) == [content]

    def fail():
        with atomic_folder(folder, work_path) as work:
            (work / "third").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert tree(tmp_path / "raw") == ["train", "train/set", "train/set/second"]
    work_path.mkdir()
    (work_path / "left by a killed process").touch()
    with atomic_folder(folder, work_path) as work:
        assert tree(work) == []
    assert tree(tmp_path / "raw") == ["train", "train/set"]


def test_a_folder_comes_back_after_a_kill_between_the_renames(tmp_path):
    folder, work_path = tmp_path / "folder", tmp_path / "work"
    (tmp_path / "work.old").mkdir()
    (tmp_path / "work.old" / "first").touch()

    def fail():
        with atomic_folder(folder, work_path):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert tree(tmp_path) == ["folder", "folder/first"]


def test_only_a_folder_of_known_files_is_replaced(tmp_path):
    folder = tmp_path / "out"
    refuse_foreign(folder, ["page.html"], "a page")
    folder.mkdir()
    (folder / "page.html").touch()
    refuse_foreign(folder, ["page.html"], "a page")
    (folder / ".notes").touch()
    with pytest.raises(UserError, match=r"out holds \.notes, which is no part of a page and would be lost"):
        refuse_foreign(folder, ["page.html"], "a page")
    for place in (folder / ".notes", folder / "..", Path()):
        with pytest.raises(UserError, match="is no folder that a page can replace; give another by its name"):
            refuse_foreign(place, [], "a page")


def test_a_resumed_work_folder_keeps_its_files_after_an_error(tmp_path):
    folder, work_path = tmp_path / "folder", tmp_path / "work"

    def fail():
        with atomic_folder(folder, work_path, resume=True) as work:
            (work / "first").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert tree(tmp_path) == ["work", "work/first"]
    with atomic_folder(folder, work_path, resume=True) as work:
        (work / "second").touch()
    assert tree(tmp_path) == ["folder", "folder/first", "folder/second"]


KILLED = """\
import os, signal, sys
from pathlib import Path
from denoise.files import atomic_file, atomic_folder, exclusive_lock
kind, path = sys.argv[1], Path(sys.argv[2])
manager = {"file": atomic_file, "folder": atomic_folder, "lock": exclusive_lock}[kind]
with manager(path) as work:
    if kind != "lock":
        (work if kind == "file" else work / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", ["file", "folder", "lock"])
def test_a_killed_process_leaves_nothing_under_the_final_name_and_no_lock(tmp_path, kind):
    path = tmp_path / "final"
    done = subprocess.run([sys.executable, "-c", KILLED, kind, path])
    assert done.returncode == -signal.SIGKILL
    if kind == "lock":
        with exclusive_lock(path, blocking=False):
            pass
    else:
        assert not path.exists()
        assert all(left.name.startswith(".") for left in tmp_path.iterdir())


def test_a_lock_keeps_other_threads_waiting(tmp_path):
    path, order = tmp_path / "new" / "lock", []

    def wait():
        with exclusive_lock(path):
            order.append("second")

    with exclusive_lock(path):
        thread = threading.Thread(target=wait)
        thread.start()
        with pytest.raises(BlockingIOError), exclusive_lock(path, blocking=False):
            pass
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_a_folder_that_is_held_is_a_user_error(tmp_path):
    work = tmp_path / "set" / "work"
    message = f"another process is sharding into {work.parent}; wait"
    held, again = lock_folder(work, "sharding into"), lock_folder(work, "sharding into")
    with held, pytest.raises(UserError, match=message), again:
        pass
    with lock_folder(work, "sharding into"), pytest.raises(BlockingIOError):
        raise BlockingIOError  # an error of the block is not taken for the lock's
    assert tree(tmp_path) == ["set", "set/work"]


def test_a_digest_matches_only_the_same_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"data")
    assert has_digest(tmp_path / "file", hashlib.sha256(b"data").hexdigest())
    assert not has_digest(tmp_path / "file", "0" * 64)
    assert not has_digest(tmp_path / "nothing", "0" * 64)


def test_a_link_shares_the_file_behind_a_symbolic_link(tmp_path):
    (tmp_path / "a").write_bytes(b"data")
    (tmp_path / "to a").symlink_to("a")
    link_or_copy(tmp_path / "to a", tmp_path / "b")
    assert (tmp_path / "b").samefile(tmp_path / "a")
    assert not (tmp_path / "b").is_symlink()


@pytest.mark.parametrize("symbolic", [False, True])
def test_a_link_to_another_disk_becomes_a_copy_or_a_symbolic_link(tmp_path, monkeypatch, symbolic):
    def other_disk(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_disk)
    (tmp_path / "a").write_bytes(b"data")
    link_or_copy(tmp_path / "a", tmp_path / "b", symbolic)
    assert (tmp_path / "b").read_bytes() == b"data"
    assert (tmp_path / "b").is_symlink() is symbolic


@pytest.mark.parametrize("name", ["../x", "/etc", "..", "", "a/b", ".hidden", "a\nb", "x" * 201, None, 3])
def test_name_that_could_lead_elsewhere_is_refused(name: object) -> None:
    with pytest.raises(UserError, match="cannot be a name"):
        require_name(name, "--name")


def test_usual_names_are_taken() -> None:
    for name in ("n2n-gauss25-0123456789", "exp1", "noise=0.5,a+b", "two words", "Höhle 3", "显微镜"):
        assert require_name(name, "--name") == name


def test_remove_deletes_only_below_the_folder(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours / "a", theirs):
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"x")
    (ours / "link").symlink_to(theirs)
    for path in (theirs, ours / ".." / "theirs", ours / "link" / "file", ours, ours / "a" / ".."):
        with pytest.raises(UserError, match="is not below"):
            remove(path, ours)
    assert (theirs / "file").exists()
    remove(ours / "link", ours)  # the link goes, not what it points to
    remove(ours / "a", ours)
    remove(ours / "gone", ours)
    assert (theirs / "file").exists()
    assert list(ours.iterdir()) == []
