"""Rules for the whole repository: imports, homes of services, sizes, the map in the README, help, pinned versions."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.smoke

ROOT = Path(__file__).parents[1]
ROOTS = ("denoise", "pipelines")
SOURCES = sorted(path for root in ROOTS for path in (ROOT / root).rglob("*.py"))
# Service -> rows of the table of services in docs/architecture.md, which name the packages that may import it.
HOMES = {
    "ray": ("Ray Train", "Ray Tune, Optuna", "Ray's nodes and Jobs API"),
    "optuna": ("Ray Tune, Optuna",),
    "mlflow": ("MLflow",),
    "webdataset": ("webdataset",),
    "boto3": ("S3 (boto3)",),
    "dvc": (),
}


def imports(path: Path) -> set[str]:
    """Return the top-level packages that a file imports, also in its functions."""
    packages = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            packages |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            packages.add(node.module.partition(".")[0])
    return packages


def packages_and_modules(root: str) -> set[str]:
    """Return what lies at the top of ``denoise`` or ``pipelines``: packages as NAME/, modules as NAME.py."""
    packages = {f"{path.parent.name}/" for path in (ROOT / root).glob("*/__init__.py")}
    return packages | {path.name for path in (ROOT / root).glob("*.py")} - {"__init__.py"}


def test_the_import_contracts_hold():
    done = subprocess.run([Path(sys.executable).with_name("lint-imports")], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


def test_the_import_contracts_cover_every_package_and_forbid_circles():
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    assert not rules.get("exclude_type_checking_imports", False)  # an import for type checkers is an import, too
    contracts = rules["contracts"]
    assert not any("ignore_imports" in contract for contract in contracts)
    for root in ROOTS:
        (layers,) = (contract for contract in contracts if contract.get("containers") == [root])
        assert (layers["type"], layers["exhaustive"]) == ("layers", True)
        names = [name.strip() for layer in layers["layers"] for name in layer.split("|")]
        assert sorted(names) == sorted(re.sub(r"/|\.py$", "", name) for name in packages_and_modules(root))
    (circles,) = (contract for contract in contracts if contract["type"] == "acyclic_siblings")
    assert {"denoise", "pipelines", "denoise.*", "pipelines.*"} <= set(circles["ancestors"])
    (forbidden,) = (contract for contract in contracts if contract["type"] == "forbidden")
    assert forbidden["source_modules"] == ["denoise"]
    assert {"pipelines", "ray", "mlflow", "optuna", "boto3", "dvc"} <= set(forbidden["forbidden_modules"])


@pytest.mark.parametrize("service", HOMES)
def test_a_service_is_imported_where_it_lives(service):
    table = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    homes = [
        home.strip()
        for row in HOMES[service]
        for home in re.search(rf"^\| {re.escape(row)} \| (.*?) \|", table, flags=re.MULTILINE)[1].split(",")
    ]
    assert all((ROOT / home).exists() for home in homes)
    users = [path.relative_to(ROOT).as_posix() for path in SOURCES if service in imports(path)]
    assert [user for user in users if not any(user == home or user.startswith(f"{home}/") for home in homes)] == []
    assert bool(users) == bool(homes)


def test_the_command_starts_without_anything_heavy():
    code = "import sys, pipelines.cli.app; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    heavy = {"torch", "ray", "mlflow", "numpy", "PIL", "cv2", "skimage", "pandas", "webdataset", "pydantic", "requests"}
    assert not heavy & set(loaded.stdout.split())


def test_nothing_unsafe_is_loaded():
    """No pickle, no torch.load but of tensors alone, no extractall: what comes from disk or the network is data."""
    forbidden = {"pickle", "cloudpickle", "dill", "joblib"}
    for path in SOURCES:
        assert not forbidden & imports(path), path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                function = ast.unparse(node.func)
                tensors = function == "torch.load" and "weights_only=True" in map(ast.unparse, node.keywords)
                assert tensors or function not in {"torch.load", "eval", "exec"}, f"{path}:{node.lineno}"
                assert not function.endswith(".extractall"), f"{path}:{node.lineno}"


def test_what_is_deleted_lies_below_a_folder_of_ours():
    """Only files.py deletes; the others call ``files.remove``, which deletes nothing outside the folder it is given."""
    forbidden = {"unlink", "rmtree", "rmdir", "removedirs"}
    for path in set(SOURCES) - {ROOT / "denoise" / "files.py"}:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in forbidden:
                assert ast.unparse(node) == "parent.rmdir()", f"{path}:{node.lineno}"  # fails where a folder has files


def test_source_files_stay_small():
    lengths = {path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {path: length for path, length in lengths.items() if length > 300} == {}


def test_no_file_is_called_utils():
    assert [path for path in SOURCES if path.stem in ("utils", "util", "helpers", "misc")] == []


def test_the_readme_maps_every_package_and_every_module_beside_them():
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Map of the repository")[2]
    entries: dict[str, list[str]] = {}
    root = ""
    for indent, name in re.findall(r"^( +)(\S+)\s", text, flags=re.MULTILINE):
        if len(indent) == 4:
            root = name.rstrip("/")
        elif name.endswith(("/", ".py")):
            entries.setdefault(root, []).append(name)
    for package in ROOTS:
        assert sorted(entries[package]) == sorted(packages_and_modules(package))


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

    known = dict(commands(typer.main.get_command(app), ["denoise"]))
    assert len(known) >= 12
    for name, command in known.items():
        assert f"Example: {name}" in command.help, name


def test_constraints_hold_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [
        *project["dependencies"],
        *(entry for extra in project["optional-dependencies"].values() for entry in extra),
    ]
    pinned = {
        line.partition("==")[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().split()
    }
    names = {re.match(r"[A-Za-z0-9._-]+", entry)[0].lower().replace("_", "-") for entry in requirements}
    assert names <= pinned
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().split()
