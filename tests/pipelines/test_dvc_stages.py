"""dvc.yaml: a stage depends on all code that decides its outputs. What it imports is found by running it."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from denoise.config import load_config
from pipelines.training.identity import code_files

ROOT = Path(__file__).parents[2]
STAGES = {
    name: stage.get("do", stage)
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"].items()
}
# Modules that decide no output of any stage, and why.
NOT_DECISIVE = {
    "denoise.config": "reads the parameters, which a stage lists as its params",
    "denoise.errors": "words of error messages",
    "denoise.files": "how files are put in place, whatever they hold",
    "denoise.documents": "reads files within bounds",
    "denoise.fields": "types of the parameters",
    "denoise.printable": "names of files in messages",
    "denoise.redaction": "hides passwords in what is printed",
    "pipelines.cli": "reads the command line and prints the answer",
    "pipelines.console": "shows progress",
    "pipelines.dvc_guard": "compares dependencies",
    "pipelines.signals": "ends the process",
    "pipelines.storage": "moves bytes, whose checksums decide",
    "pipelines.tracking": "records what a stage has made",
}
# Modules that decide no output of one stage.
NOT_DECISIVE_IN = {
    "train": {
        "denoise.estimate": "a line at the end, of what the model restores",
        "denoise.evaluate": "is imported by denoise.estimate",
        "denoise.noise_meter": "a warning about real noise; the weights are the same",
        "denoise.quality": "is imported by denoise.estimate",
        "pipelines.report": "words of a line at the end",
        "pipelines.datasets": "opens shards, whose bytes the stage depends on",
        "pipelines.registry": "names the model in the commands that are printed",
    },
    "evaluate": {
        "pipelines.datasets": "opens shards, whose bytes the stage depends on",
        "pipelines.report": "prints the table, and shows on a page what scores.json holds",
    },
    "register": {
        "denoise": "reads the model's card, and looks whether its files are sound",
        "pipelines.datasets": "is imported by pipelines.evaluate",
        "pipelines.evaluate": "knows the name of the file of scores",
    },
    "report": {
        "pipelines.datasets": "is imported by pipelines.evaluate",
        "pipelines.evaluate": "knows the name of the file of scores",
    },
}
VALUES = {"${item.method}": "n2n", "${item.data}": "small", "${evaluate.protocol}": "float", "${noise}": "gauss25"}
ITEMS = {"shard": "test", "train": "n2n"}
# No service is needed: shard brings images that are installed, training is local, and the last stage ends with an
# error, as MLflow does not answer, after it has imported everything.
NO_MLFLOW = ["-S", "tracking.uri=http://127.0.0.1:9"]
OPTIONS = {
    "shard": ["-S", "data.test=samples"],
    "train": ["--local"],
    "register": NO_MLFLOW,
}
EXIT_CODES = {"register": 1}
PARAMS = """\
data: {train: [small], val: [small], test: [small], allow_overlap: [small]}
train: {steps: 1, crop: 32, log_every: 1, eval_every: 1, checkpoint_every: 1, precision: fp32}
compare: [n2n]
"""


def command(name):
    text = STAGES[name]["cmd"].replace("${item}", ITEMS.get(name, ""))
    for key, value in VALUES.items():
        text = text.replace(key, value)
    shell, script, *arguments = shlex.split(text)
    assert [shell, script] == ["sh", "pipelines/stage.sh"]
    return [*arguments, *OPTIONS.get(name, [])]


@pytest.fixture(scope="module")
def modules(tmp_path_factory, small_shards):
    """The names of our modules that each stage imports, in a small project."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "params.yaml").write_text(PARAMS)
    for split in ("train", "val", "test"):
        shutil.copytree(small_shards, folder / "data" / "shards" / split / "small")
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("stage_modules.py"), folder],
        input=json.dumps({name: command(name) for name in STAGES}),
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    for name in STAGES:
        assert f"{name} ended with {EXIT_CODES.get(name, 0)}\n" in done.stderr, done.stderr
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in STAGES}


def is_below(path, folder):
    return path == folder or path.startswith(f"{folder}/")


def source(module):
    path = ROOT / module.replace(".", "/")
    return (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).relative_to(ROOT).as_posix()


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_the_modules_that_it_imports(name, modules):
    excused = {**NOT_DECISIVE, **NOT_DECISIVE_IN.get(name, {})}
    decisive = [
        module
        for module in modules[name]
        if "." in module and not any(is_below(module.replace(".", "/"), entry.replace(".", "/")) for entry in excused)
    ]
    missing = [
        module for module in decisive if not any(is_below(source(module), path) for path in STAGES[name]["deps"])
    ]
    assert missing == [], f"add what decides outputs to the deps of {name} in dvc.yaml"
    assert "pipelines.cli.app" in modules[name]


def test_training_depends_on_all_code_that_names_a_run():
    config = load_config(ROOT / "params.yaml")
    for method in config.compare:
        for path in code_files(load_config(ROOT / "params.yaml", [f"method={method}"])):
            file = path.relative_to(ROOT).as_posix()
            assert any(is_below(file, dependency) for dependency in STAGES["train"]["deps"]), file


@pytest.mark.parametrize("name", STAGES)
def test_code_dependencies_are_packages_or_modules_of_no_package(name):
    for dependency in STAGES[name]["deps"]:
        if dependency.partition("/")[0] in ("denoise", "pipelines"):
            path = ROOT / dependency
            assert (path / "__init__.py").is_file() or (path.is_file() and path.parent.parent == ROOT), dependency
