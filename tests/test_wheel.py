"""The wheel: it builds, holds what the packages need, and runs from anywhere."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_wheel_builds_installs_and_runs(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    target = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, wheel]
    subprocess.run(install, check=True, capture_output=True)
    assert (target / "pipelines/report/templates/report.html.jinja").is_file()
    assert (target / "pipelines/datasets/checksums/kodak.txt").is_file()
    assert len(list((target / "pipelines/training/recipes").glob("*.yaml"))) == len(
        list((ROOT / "pipelines/training/recipes").iterdir())
    )
    elsewhere = {
        "cwd": tmp_path,
        "env": {**os.environ, "PYTHONPATH": str(target)},
        "capture_output": True,
        "text": True,
    }
    done = subprocess.run([target / "bin/denoise", "--version"], check=True, **elsewhere)
    assert done.stdout == f"denoise {version('noise2x')}\n"
    where = subprocess.run(
        [sys.executable, "-c", "import pipelines; print(pipelines.__file__)"], check=True, **elsewhere
    )
    assert Path(where.stdout.strip()).is_relative_to(target)
