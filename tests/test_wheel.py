"""The wheel: it builds, holds the data files of the packages, and runs in any folder."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def is_source(path):
    return path.is_file() and "__pycache__" not in path.parts


def test_a_wheel_builds_installs_and_runs(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    target = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, wheel]
    subprocess.run(install, check=True, capture_output=True)
    # Every file of the packages is in the wheel, data files as well: templates, checksums, recipes, spaces.
    for package in ("denoise", "pipelines"):
        sources = {path.relative_to(ROOT) for path in (ROOT / package).rglob("*") if is_source(path)}
        installed = {path.relative_to(target) for path in (target / package).rglob("*") if is_source(path)}
        assert installed == sources
    elsewhere = {
        "cwd": tmp_path,
        "env": {**os.environ, "PYTHONPATH": str(target)},
        "capture_output": True,
        "text": True,
    }
    done = subprocess.run([target / "bin/denoise", "--version"], check=True, **elsewhere)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert done.stdout == f"denoise {version}\n"
    where = subprocess.run(
        [sys.executable, "-c", "import pipelines; print(pipelines.__file__)"], check=True, **elsewhere
    )
    assert Path(where.stdout.strip()).is_relative_to(target)
