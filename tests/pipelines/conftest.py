"""A small project to run commands in."""

import shutil
import sys
from pathlib import Path

import pytest

PARAMS = """\
data: {train: [small], val: [small], test: []}
train:
  steps: 12
  crop: 32
  log_every: 2
  eval_every: 6
  checkpoint_every: 6
  precision: fp32
"""


@pytest.fixture
def project(tmp_path: Path, small_shards: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml and shards of real pictures, made the current one."""
    for split in ("train", "val"):
        shutil.copytree(small_shards, tmp_path / "data" / "shards" / split / "small")
    (tmp_path / "params.yaml").write_text(PARAMS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def denoise() -> list[str]:
    """The command line, as the start of a list for subprocess."""
    return [sys.executable, "-m", "pipelines.cli"]
