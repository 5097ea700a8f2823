"""``make`` works in a folder whose path has blanks and signs."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FAKE_PYTHON = """\
#!/bin/sh
mkdir -p .venv/bin
for program in python denoise pre-commit; do
  printf '#!/bin/sh\\necho "$0 $*" >> calls\\n' > .venv/bin/$program
  chmod +x .venv/bin/$program
done
"""


INSTALLATION = [".venv/bin/python"] * 2


def programs_of(project: Path, *targets: str) -> list[str]:
    """Return the programs that make runs in a project."""
    calls = project / "calls"
    calls.write_text("")
    done = subprocess.run(["make", "PYTHON=./fake-python", *targets], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [line.split()[0] for line in calls.read_text().splitlines()]


@pytest.mark.parametrize("name", ["sp ace", "it's", "$HOME #1", "a:b", "50% ?", "(x) & y;z", "Größe"])
def test_targets_run_the_programs_of_this_folder(tmp_path, name):
    project = tmp_path / name
    project.mkdir()
    for file in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / file, project)
    python = project / "fake-python"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    assert programs_of(project, "install", "demo", "smoke", "lint") == [
        *INSTALLATION,
        ".venv/bin/denoise",
        ".venv/bin/python",
        ".venv/bin/pre-commit",
    ]
    assert (project / ".venv" / ".installed").is_file()
    assert programs_of(project, "install") == []
    assert [path.name for path in tmp_path.iterdir()] == [name]
    copy = tmp_path / f"{name} 2"
    shutil.copytree(project, copy)
    assert programs_of(copy, "install") == INSTALLATION  # an editable installation is that of one folder
    assert programs_of(copy, "install") == programs_of(project, "install") == []
