"""The rules that no single module can keep alone."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for package in ("denoise", "pipelines") for path in (ROOT / package).rglob("*.py"))
OURS = {"denoise", "pipelines"}


def imports(path: Path, everywhere: bool) -> set[str]:
    """Return the top-level packages that a file imports: at its top, or in its functions as well."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_the_import_rule_holds():
    done = subprocess.run([Path(sys.executable).with_name("lint-imports")], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


def test_only_its_own_files_import_mlflow():
    users = {path.name for path in SOURCES if "mlflow" in imports(path, everywhere=True)}
    rule = re.search(r"\| MLflow \| pipelines/(.*?) \|", (ROOT / "docs/architecture.md").read_text())
    assert users <= {name.strip() for name in rule[1].split(",")}


@pytest.mark.parametrize("service", ["ray", "webdataset", "boto3", "dvc", "optuna"])
def test_a_service_is_imported_where_it_lives(service):
    users = {path.relative_to(ROOT).as_posix() for path in SOURCES if service in imports(path, everywhere=True)}
    homes = {
        "ray": {
            "pipelines/training/on_ray.py",
            "pipelines/training/driver.py",
            "pipelines/training/worker.py",
            "pipelines/cluster/connect.py",
            "pipelines/cluster/auth.py",
            "pipelines/doctor/check.py",
            "pipelines/cluster/jobs.py",
            "pipelines/tuning/sweep.py",
            "pipelines/tuning/ray_search.py",
            "pipelines/tuning/trial.py",
        },
        "optuna": {f"pipelines/tune_{part}.py" for part in ("study", "optuna", "claim", "results", "images")},
        "webdataset": {"denoise/sharding/writer.py"},
        "boto3": {"pipelines/storage/base.py"},
    }
    assert users <= homes.get(service, set())


def test_the_command_starts_without_anything_heavy():
    code = "import sys, pipelines.cli.app; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    heavy = {"torch", "ray", "mlflow", "numpy", "PIL", "cv2", "skimage", "pandas", "webdataset", "pydantic", "requests"}
    assert not heavy & set(loaded.stdout.split())


def test_nothing_unsafe_is_loaded():
    """No pickle, no torch.load, no extractall: what comes from disk or the network is data."""
    forbidden = {"pickle", "cloudpickle", "dill", "joblib"}
    for path in SOURCES:
        assert not forbidden & imports(path, everywhere=True), path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"torch.load", "eval", "exec"}, f"{path}:{node.lineno}"
                assert not called.endswith(".extractall"), f"{path}:{node.lineno}"


def test_source_files_stay_small():
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_the_readme_maps_every_source_file():
    map_ = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Map of the repository")[2]
    mapped = set(re.findall(r"^ +(\S+\.py)  ", map_, flags=re.MULTILINE))
    files = {path.name for path in SOURCES if path.name != "__init__.py"}
    assert mapped == files


def test_the_readme_and_the_docs_link_to_files_that_exist():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_command_has_help_with_an_example():
    import typer

    from pipelines.cli.app import app

    def commands(group, path):
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from commands(command, [*path, name])
            else:
                yield " ".join([*path, name]), command

    found = dict(commands(typer.main.get_command(app), ["denoise"]))
    assert len(found) >= 12
    for name, command in found.items():
        assert f"Example: {name}" in command.help, name


def test_constraints_hold_every_dependency():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(entry for extra in project["optional-dependencies"].values() for entry in extra),
    ]
    pinned = {
        line.partition("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()
    }
    names = {re.match(r"[A-Za-z0-9._-]+", entry)[0].lower().replace("_", "-") for entry in wanted}
    assert names <= pinned
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().split()
