"""The identity of a training run: the same command finds its run again, a changed one gets a run of its own."""

import ast
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from denoise.config import Config, digest, flatten, from_dict, to_dict
from denoise.files import file_digest
from pipelines.training.teacher import teacher_digest

DECISIVE_DATA = ("colour", "noise_patch", "pairs", "fixed_noise", "streams", "window", "crops_per_image", "small")
# How a batch is computed, and what is done about trouble: the same run may go on with another answer.
# A teacher is known by its digest, wherever it lies.
NOT_DECISIVE = ("micro_batch", "oom", "skip_nonfinite", "teacher")
# A run with a name of its own (--name) may also go on with other values of these: when it reports and saves, which
# checkpoint becomes the model, and kernels that differ by rounding. Its train.steps may grow.
NOT_DECISIVE_OF_A_NAMED_RUN = (
    *("log_every", "eval_every", "checkpoint_every", "val_loss", "val_images", "train_psnr", "model"),
    *("channels_last", "fused", "compile", "cuda_graphs", "static_graph", "deterministic"),
)

UNUSED = {"adam": ("momentum",), "adamw": ("momentum",), "sgd": ("betas",)}  # what an optimizer does not have

# The part of the core that every training step runs. Of methods, nets and noise only what is chosen is added.
PACKAGES = ("images", "stacks", "data", "training")
CHOSEN = ("methods", "nets", "noise")
MODULES = (
    "__init__",
    "config",
    "denoiser",
    "distributed",
    "documents",
    "errors",
    "fields",
    "files",
    "model_files",
    "precision",
    "printable",
    "redaction",
    "rng",
    "tiling",
)
# In the package training, and without influence on the weights: where memory comes from, faults on purpose, timings.
NOT_DECISIVE_MODULES = ("training/malloc.py", "training/fault_injection.py", "training/profiler.py")


def run_name(config: Config, data_digest: str) -> str:
    """Return the name of the run: method, noise, and a hash of all that decides its weights.

    Where it runs and how it is recorded (workers, storage, tracking, caches) is no part of the hash: the same run may
    continue on another cluster.
    """
    teacher = teacher_digest(config)
    taught = {"teacher": teacher} if teacher else {}
    identity = {**_decisive(config), "data": data_digest, "code": code_digest(config), **taught}
    return f"{config.method.name}-{config.noise}-{digest(identity)[:10]}"


def changed_settings(stored: Mapping[str, Any], config: Config) -> list[str]:
    """Return what keeps a run from going on under its name, each as ``KEY: OLD, now NEW``.

    Args:
        stored: the configuration in the card of its last checkpoint or model.
        config: the configuration to go on with.
    """
    before, now = from_dict(stored), config
    old, new = named_settings(before), named_settings(now)
    keys = [key for key in (old | new) if old.get(key) != new.get(key)]
    changes = [f"{key}: {old.get(key, 'not given')}, now {new.get(key, 'not given')}" for key in keys]
    fewer = [f"train.steps: {before.train.steps}, now {now.train.steps}"] * (now.train.steps < before.train.steps)
    return [*changes, *fewer]


def named_settings(config: Config) -> dict[str, Any]:
    """Return the settings that a run with a name of its own must keep, by their keys; its steps may grow."""
    decisive = _decisive(config)
    train = {
        key: value
        for key, value in decisive["train"].items()
        if key != "steps" and key not in NOT_DECISIVE_OF_A_NAMED_RUN
    }
    data = {key: decisive.pop(key) for key in DECISIVE_DATA}
    return flatten({**decisive, "train": train, "data": data})


def _decisive(config: Config) -> dict[str, Any]:
    """Return the keys of a configuration that decide the weights, with the same values for auto as for its number."""
    from denoise.methods import with_net

    tree, unused = to_dict(with_net(config)), UNUSED[config.train.optimizer]
    decisive = {key: tree[key] for key in ("seed", "noise", "method", "net")}
    decisive["train"] = {
        key: value for key, value in tree["train"].items() if key not in NOT_DECISIVE and key not in unused
    }
    return {**decisive, **{key: tree["data"][key] for key in DECISIVE_DATA}}


def code_digest(config: Config) -> str:
    """Return the sha256 of the code that this training runs, so that a resumed run never mixes two versions of it."""
    return digest({f"{path.parent.name}/{path.name}": file_digest(path) for path in code_files(config)})


def code_files(config: Config) -> list[Path]:
    """Return the files of the core that this training runs.

    Of the methods, nets and noise models only the chosen one counts, with the files of these packages that it imports,
    and not the list of all of them in ``__init__.py``: adding another leaves finished runs what they are. A teacher's
    count as well.
    """
    import denoise
    from denoise.methods import METHODS, with_net
    from denoise.model_files import read_card
    from denoise.nets import net_class
    from denoise.noise import parse_noise

    root = Path(denoise.__file__).parent
    files = {root / f"{name}.py" for name in MODULES}
    for package in PACKAGES:
        files |= set((root / package).glob("*.py"))
    files -= {root / name for name in NOT_DECISIVE_MODULES}
    classes = [METHODS[config.method.name], net_class(with_net(config).net.name), type(parse_noise(config.noise))]
    if config.train.teacher is not None:
        card = read_card(Path(config.train.teacher))
        classes += [METHODS[card["method"]["name"]], net_class(card["net"]["name"])]
    for cls in classes:
        files |= _with_imported(Path(inspect.getfile(cls)), root)
    return sorted(files)


def _with_imported(path: Path, root: Path) -> set[Path]:
    """Return a file with all of the methods, nets and noise models that it imports, directly or not."""
    files, waiting = set(), {path}
    while waiting:
        file = waiting.pop()
        files.add(file)
        waiting |= _imported(file, root) - files
    return files


def _imported(path: Path, root: Path) -> set[Path]:
    """Return the files of ``CHOSEN`` packages below ``root`` that a file imports, in whichever form."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    modules = [name.split(".")[1:] for name in names if name.startswith("denoise.")]
    files = {root.joinpath(*module).with_suffix(".py") for module in modules if module[0] in CHOSEN}
    return {file for file in files if file.is_file()}
