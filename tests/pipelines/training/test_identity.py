"""The identity of a run: what makes another run of it, and what does not."""

import ast
import inspect
from pathlib import Path

import pytest

import denoise
from denoise.config import Config, load_config
from denoise.methods import METHODS, with_net
from denoise.nets import net_class
from denoise.noise import parse_noise
from pipelines.training.identity import NOT_DECISIVE_MODULES, code_files, run_name

pytestmark = pytest.mark.smoke

ROOT = Path(denoise.__file__).parent
# The lists of all methods, nets and noise models: adding one must not rename the runs of the others.
REGISTRIES = ("methods/__init__.py", "nets/__init__.py", "noise/__init__.py")
TRAINED = sorted(name for name, method in METHODS.items() if method.trained)


def name(*overrides, data="data"):
    return run_name(load_config(None, overrides), data)


def covered(config: Config) -> set[str]:
    """Return the files whose content is part of a run's identity, relative to the core."""
    return {path.relative_to(ROOT).as_posix() for path in code_files(config)}


def reached(*starts: str) -> set[str]:
    """Return every file of the core that importing these files imports, but for what the registries list."""
    files, waiting = set(), set(starts)
    while waiting:
        file = waiting.pop()
        files.add(file)
        if file not in REGISTRIES:
            waiting |= imported(ROOT / file) - files
    return files


def imported(path: Path) -> set[str]:
    """Return the files of the core that a file imports, anywhere in it, with the packages around them."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    parts = [module.split(".")[1:] for module in modules if module.partition(".")[0] == "denoise"]
    packages = {"/".join([*part[:end], "__init__.py"]) for part in parts for end in range(len(part) + 1)}
    files = {"/".join(part) + ".py" for part in parts if part}
    return {file for file in packages | files if (ROOT / file).is_file()}


def test_a_name_says_method_and_noise():
    assert name("method=n2c", "noise=gauss5_50").startswith("n2c-gauss5_50-")
    assert name() == name()


@pytest.mark.parametrize(
    "override",
    [
        *("seed=1", "noise=gauss50", "method=n2c", "method.loss_name=l1", "train.lr=2e-3", "data.colour=grey"),
        "data.noise_patch=16",
    ],
)
def test_what_decides_the_weights_makes_another_run(override):
    assert name(override) != name()


@pytest.mark.parametrize(
    ("chosen", "settled", "other"),
    [
        ("method=n2n", "train.crop=64", "train.crop=96"),
        ("method=ssdn", "train.crop=128", "train.crop=96"),
        ("train.optimizer=adamw", "train.weight_decay=0.01", "train.weight_decay=0"),
        ("train.optimizer=adam", "train.weight_decay=0", "train.weight_decay=0.01"),
        ("train.optimizer=adam", "train.momentum=0.9", "train.betas=[0.9, 0.999]"),
        ("train.optimizer=sgd", "train.betas=[0.9, 0.999]", "train.momentum=0.9"),
    ],
)
def test_a_run_is_the_same_with_auto_and_with_what_that_becomes(chosen, settled, other):
    assert name(chosen) == name(chosen, settled) != name(chosen, other)


def test_other_images_make_another_run():
    assert name(data="others") != name()


ELSEWHERE = ["ray.workers=8", "ray.storage=s3://b/r", "tracking.uri=http://h:1", "evaluate.protocol=laine2019"]


@pytest.mark.parametrize("override", ELSEWHERE)
def test_where_a_run_happens_does_not_make_another_run(override):
    assert name(override) == name()


def test_the_code_of_the_chosen_method_counts_and_that_of_others_does_not():
    files = {method: covered(load_config(None, [f"method={method}"])) for method in ("n2c", "n2n")}
    assert files["n2c"] ^ files["n2n"] == {"methods/noise2clean.py", "methods/noise2noise.py"}
    assert {"training/loop.py", "rng.py", "methods/base.py", "methods/losses.py", "nets/unet.py"} <= files["n2c"]


@pytest.mark.parametrize("method", TRAINED)
def test_every_module_that_training_imports_is_part_of_a_runs_identity_or_left_out_for_a_reason(method):
    noise = "gauss25" if "gauss" in (METHODS[method].families or ("gauss",)) else "poisson30"
    config = with_net(load_config(None, [f"method={method}", f"noise={noise}"]))
    chosen = (METHODS[method], net_class(config.net.name), type(parse_noise(config.noise)))
    files = reached("training/loop.py", *(Path(inspect.getfile(cls)).relative_to(ROOT).as_posix() for cls in chosen))
    assert files - covered(config) == {*NOT_DECISIVE_MODULES, *REGISTRIES}


def test_code_that_no_training_step_runs_is_not_part_of_a_runs_identity():
    files = covered(Config())
    assert "evaluate.py" not in files
    assert not any(file.startswith("sharding/") for file in files)
    assert all((ROOT / file).is_file() for file in NOT_DECISIVE_MODULES)
