"""Every command that a message, a help text or a page names can be typed: command, options, keys and names exist."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

from denoise.config import Config, flatten, load_config, to_dict
from denoise.errors import UserError
from denoise.evaluate import get_protocol
from denoise.methods import build_method
from denoise.noise import parse_noise
from denoise.training.fault_injection import parse_fault
from pipelines.cli import app as cli
from pipelines.datasets.catalog import SETS
from pipelines.training.recipes import load_recipe
from pipelines.tuning.space import load_sweep
from tests.pipelines.conftest import ROOT

VALUE = "7"  # stands for what a message fills in: a number, as it suits every type
PLACEHOLDER = re.compile(r"[A-Z]{2,}|\b7+\b|\.\.\.|\bN\b")  # of a value that the reader is to replace
PYTHON = [
    path
    for package in ("denoise", "pipelines")
    for path in sorted((ROOT / package).rglob("*.py"))
    if "denoise " in path.read_text().replace("from denoise import", "")
]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FILES = [
    "dvc.yaml",
    "params.yaml",
    "Makefile",
    "ray_job.yaml",
    "ray_cluster.yaml",
    "ray_cluster_local.yaml",
    "slurm.sh",
]
OTHERS = [*map(ROOT.joinpath, FILES), *(ROOT / "pipelines").rglob("templates/*")]
NOTES = [path for path in (ROOT / "pipelines").rglob("*.yaml") if "denoise " in path.read_text()]

ROOT_COMMAND = typer.main.get_command(cli.app)
USAGE_ERROR = typer.BadParameter.__base__  # what every mistake in options and arguments is
KEYS = flatten(to_dict(Config()))


def strings_of(path: Path) -> Iterator[str]:
    """Yield the string literals of a module, those of an f-string whole, with VALUE for what it fills in."""
    parts = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            parts |= set(map(id, node.values))
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value


def commands_of(text: str) -> Iterator[str]:
    """Yield what follows ``denoise`` in the code of a text, and in its sentences where a command stands there."""
    text = re.sub(r"^```.*", "", text, flags=re.MULTILINE)
    text = re.sub(r"\$\{[^}]*\}", VALUE, re.sub(r"\s*\\\n\s*", " ", text))  # ${...}: of dvc.yaml
    spans = re.findall(r"``?([^`]+)``?", text)
    lines = re.sub(r"``?[^`]+``?", "", text).splitlines()
    yield from (found for span in spans for found in re.findall(r"(?:^|&& |; )denoise (.+?)(?= &&|$)", flat(span)))
    names = "|".join(ROOT_COMMAND.commands)
    for line in lines:
        yield from re.findall(rf"(?<![\w/.])denoise ((?:{names})\b.*?)(?= &&|\)|;|'|\.? *$|\. |, |  )", line)


def flat(span: str) -> str:
    return " ".join(span.split())


def dvc_settings_of(text: str) -> Iterator[str]:
    for arguments in re.findall(r"dvc exp run ([^`\n]*)", text):
        yield from (quoted or plain for quoted, plain in re.findall(r"-S (?:'([^']+)'|(\S+))", arguments))


def check(words: list[str]) -> None:
    """Check the words after ``denoise`` without running anything."""
    command, name = ROOT_COMMAND, "denoise"
    if words[0] == "COMMAND":
        return
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        name, *words = words
        assert name in command.commands, f"denoise has no command {name}"
        command = command.commands[name]
    last = next((parameter for parameter in command.params if words and words[-1] in parameter.opts), None)
    if not words or (last and not last.is_flag):  # a sentence names the command, or its option: no line to type
        return
    try:
        params = command.make_context(name, list(words)).params
    except typer.Exit:  # --help
        return
    if name == "submit":
        check(params["command"])
    check_settings([*(params.get("overrides") or ()), *(params.get("settings") or ())])
    check_names(name, {key: value for key, value in params.items() if value is not None})


def check_settings(settings: list[str]) -> None:
    for setting in settings:
        key, _, value = setting.partition("=")
        assert key in KEYS or key.partition(".")[0] in ("method", "net"), f"{key} is not a key"
        if not PLACEHOLDER.search(value):
            load_config(None, [setting])
        if key == "preset" and not PLACEHOLDER.search(value):
            load_recipe(value)
    if not PLACEHOLDER.search(" ".join(settings)):
        config = load_config(None, settings)
        build_method(config.method.name, config.method.fields, parse_noise(config.noise))


def check_names(command: str, params: dict) -> None:
    """Check the names of sets, sweeps, recipes, faults, noises and protocols that stand in a command."""
    checks = {"noise": parse_noise, "protocol": get_protocol, "inject": parse_fault}
    if command in ("fetch", "presets", "tune"):
        checks |= {"fetch": {"names": known_set}, "presets": {"name": load_recipe}, "tune": {"space": sweep}}[command]
    for key, function in checks.items():
        for value in params.get(key, ()) if isinstance(params.get(key), list | tuple) else [params.get(key)]:
            if value is not None and not PLACEHOLDER.search(value):
                function(value)


def known_set(name: str) -> None:
    assert name in SETS


def sweep(name: str) -> None:
    if name != "mine.yaml":  # the reader's own
        load_sweep(name)


@pytest.mark.parametrize("path", [*PYTHON, *PAGES, *OTHERS, *NOTES], ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_that_is_named_can_be_typed(path):
    texts = strings_of(path) if path.suffix == ".py" else [path.read_text()]
    if path in NOTES:
        texts = [str(value) for value in yaml.safe_load(path.read_text()).values()]
    for text in texts:
        for command in commands_of(text):
            try:
                check(shlex.split(command, comments=True))
            except (USAGE_ERROR, UserError, ValueError, AssertionError) as error:
                message = error.format_message() if isinstance(error, USAGE_ERROR) else str(error)
                pytest.fail(f"denoise {command}: {message}")
        check_settings(list(dvc_settings_of(text)))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_script_and_target_that_a_page_names_exists(path):
    text = path.read_text()
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"(?:^ {4}|`)make ([a-z-]+)", text, re.MULTILINE):
        assert target in targets, f"make {target}"
    for script, arguments in re.findall(r"(?:^ {4}|`)python (\S+\.py)([^`\n#]*)", text, re.MULTILINE):
        source = (ROOT / script).read_text()
        for option in re.findall(r"--[a-z-]+", arguments):
            assert f'"{option}"' in source, f"{script} has no {option}"


def test_what_cannot_be_typed_is_found():
    for wrong in (
        "fetsh a",
        "fetch kodac",
        "fetch --splitt val",
        "train trian.steps=3",
        "tune tpe-ash",
        "restore a.png",
    ):
        with pytest.raises((AssertionError, USAGE_ERROR, UserError)):
            check(wrong.split())
    assert list(commands_of("no `denoise fetsh 7`; or (denoise shard 7).")) == ["fetsh 7", "shard 7"]
    assert list(commands_of("    denoise fetch a && denoise shard a  # it")) == ["fetch a", "shard a"]
