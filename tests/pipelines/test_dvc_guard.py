"""A DVC stage fails where its dependencies or parameters are edited while it runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from denoise.errors import UserError
from pipelines.dvc_guard import dependencies_unchanged

PIPELINE = """\
stages:
  work:
    foreach: [a, b]
    do:
      cmd: python work.py ${item}
      deps:
        - code.py
        - data/${item}
      params:
        - train.steps
      outs:
        - out-${item}
"""


@pytest.fixture
def stage(tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    (tmp_path / "params.yaml").write_text("train: {steps: 5, lr: 1}\n")
    (tmp_path / "code.py").write_text("one")
    for item in "ab":
        (tmp_path / "data" / item).mkdir(parents=True)
        (tmp_path / "data" / item / "file").write_text(item)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_STAGE", "work@a")
    return tmp_path


def test_nothing_changed(stage):
    with dependencies_unchanged():
        (stage / "data" / "b" / "file").write_text("not of this stage")
        (stage / "params.yaml").write_text("train: {steps: 5, lr: 2}\n")
        (stage / "out-a").write_text("result")
    assert (stage / "out-a").is_file()  # and nothing was raised


@pytest.mark.parametrize("key", ["data.url", "data"])
def test_a_password_in_a_parameter_that_dvc_would_copy_is_refused(stage, key):
    (stage / "dvc.yaml").write_text(PIPELINE.replace("train.steps", key))
    (stage / "params.yaml").write_text("data: {url: 'https://me:TOPSECRET@shards.example/d', train: [a]}\n")
    with pytest.raises(UserError, match=f"params.yaml:{key} holds a password") as refusal, dependencies_unchanged():
        (stage / "code.py").write_text("this stage does not run")
    assert "TOPSECRET" not in str(refusal.value)
    assert (stage / "code.py").read_text() == "one"


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("code.py", "two", "code.py changed"),
        ("data/a/file", "other", "data/a changed"),
        ("data/a/new", "", "data/a changed"),
        ("params.yaml", "train: {steps: 6}", "params.yaml:train.steps changed"),
    ],
)
def test_a_change_is_an_error_that_names_it(stage, path, text, message):
    with pytest.raises(UserError, match=rf"{message} while the stage work@a ran"), dependencies_unchanged():
        (stage / path).write_text(text)


def test_an_error_of_the_stage_is_not_hidden(stage):
    (stage / "code.py").unlink()
    with pytest.raises(FileNotFoundError, match="code"), dependencies_unchanged():
        (stage / "code.py").read_text()


def test_outside_of_a_stage_nothing_is_compared(stage, monkeypatch):
    monkeypatch.delenv("DVC_STAGE")
    with dependencies_unchanged():
        (stage / "code.py").write_text("two")
    assert (stage / "code.py").read_text() == "two"  # and nothing was raised


MATRIX = """\
stages:
  work:
    matrix:
      method: ${compare}
      data: [a-b, b]
    cmd: python work.py ${item.method} ${item.data}
    deps:
      - models/${item.method}
      - data/${item.data}
    params:
      - noise
    outs:
      - out/${item.method}/${item.data}
"""


@pytest.mark.parametrize("path", ["models/n2c", "data/a-b"])
def test_the_dependencies_of_a_stage_of_a_matrix_are_compared(stage, monkeypatch, path):
    (stage / "dvc.yaml").write_text(MATRIX)
    (stage / "params.yaml").write_text("{compare: [n2n, n2c], noise: gauss25}\n")
    (stage / "models").mkdir()
    monkeypatch.setenv("DVC_STAGE", "work@n2c-a-b")
    with pytest.raises(UserError, match=f"{path} changed while the stage work@n2c-a-b ran"), dependencies_unchanged():
        (stage / path).write_text("other")


EDITING = """\
import sys
sys.path.insert(0, {root!r})
import pipelines.datasets.shard as stage
from pipelines.cli.app import main
work = stage.shard
def edit_and_shard(*given, **named):
    open("code.py", "w").write("edited")
    return work(*given, **named)
stage.shard = edit_and_shard
main()
"""


def test_dvc_does_not_record_what_was_edited_meanwhile(stage, small_images):
    """With the real dvc: the stage fails, and the next run makes it good."""
    command = f"{sys.executable} edit.py shard own --from {small_images} --split train"
    (stage / "edit.py").write_text(EDITING.format(root=str(Path(__file__).parents[2])))
    (stage / "dvc.yaml").write_text(f"stages: {{work: {{cmd: '{command}', deps: [code.py], outs: [data/shards]}}}}")
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "--no-scm", "-q"], check=True)
    done = subprocess.run([*dvc, "repro"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "code.py changed while the stage work ran" in done.stderr
    assert not (stage / "dvc.lock").exists()
    again = subprocess.run([*dvc, "repro"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
