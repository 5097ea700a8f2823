"""The identity of a training run: the same command finds its run again, a changed one gets a run of its own."""

import ast
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from denoise.config import Config, digest, to_dict
from denoise.files import file_digest

DECISIVE_DATA = ("colour", "fixed_noise", "streams", "window", "crops_per_image", "small")
# How a batch is computed, and what is done about trouble: the same run may go on with another answer.
NOT_DECISIVE = ("micro_batch", "oom", "skip_nonfinite")
# Modules of the core that no training step depends on.
NOT_TRAINING = (
    "allocator.py",
    "evaluate.py",
    "faults.py",
    "fingerprints.py",
    "leakage.py",
    "profile.py",
    "restore.py",
    "shard_writer.py",
)


def code_digest(config: Config) -> str:
    """Return the sha256 of the code that this training runs, so that a resumed run never mixes two versions of it."""
    return digest({f"{path.parent.name}/{path.name}": file_digest(path) for path in code_files(config)})


def code_files(config: Config) -> list[Path]:
    """Return the files of the core that this training runs.

    Of the methods, nets and noise models only the chosen one counts (with the files it imports from beside it):
    adding another leaves finished runs what they are.
    """
    import denoise
    from denoise.methods import METHODS, with_net
    from denoise.nets import net_class
    from denoise.noise import parse_noise

    root = Path(denoise.__file__).parent
    files = {path for path in root.glob("*.py") if path.name not in NOT_TRAINING}
    chosen = (
        METHODS[config.method.name],
        net_class(with_net(config).net.name),
        type(parse_noise(config.noise)),
    )
    for cls in chosen:
        files |= _with_siblings(Path(inspect.getfile(cls)))
    return sorted(files)


def _with_siblings(path: Path) -> set[Path]:
    """Return a file of a package with all that it imports from the same package, directly or not."""
    found, waiting = set(), {path}
    while waiting:
        path = waiting.pop()
        found.add(path)
        package = ".".join(("denoise", path.parent.name))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(f"{package}."):
                waiting |= {path.with_name(f"{node.module.rpartition('.')[2]}.py")} - found
    return found


def run_name(config: Config, data_digest: str) -> str:
    """Return the name of the run: method, noise, and a hash of all that decides its weights.

    Where it runs and how it is recorded (workers, storage, tracking, caches) is no part of the hash: the same run may
    continue on another cluster.
    """
    identity = {**_decisive(to_dict(config)), "data": data_digest, "code": code_digest(config)}
    return f"{config.method.name}-{config.noise}-{digest(identity)[:10]}"


def _decisive(tree: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: tree[key] for key in ("seed", "noise", "method", "net")}
    kept["train"] = {key: value for key, value in tree["train"].items() if key not in NOT_DECISIVE}
    return {**kept, **{key: tree["data"][key] for key in DECISIVE_DATA}}
