"""The identity of a training run: the same command finds its run again, a changed one gets a run of its own."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from denoise.config import Config, digest, to_dict
from denoise.files import file_digest

NOT_TRAINING = ("evaluate.py", "restore.py")  # modules of the core that training never runs


def code_digest(config: Config) -> str:
    """Return the sha256 of the code that this training runs, so that a resumed run never mixes two versions of it."""
    return digest({path.name: file_digest(path) for path in code_files(config)})


def code_files(config: Config) -> list[Path]:
    """Return the files of the core that this training runs.

    Of the methods and nets only the chosen one counts: adding another leaves finished runs what they are.
    """
    import denoise
    from denoise.methods import METHODS
    from denoise.nets import NETS

    root = Path(denoise.__file__).parent
    files = {path for path in root.glob("*.py") if path.name not in NOT_TRAINING} | {root / "methods" / "base.py"}
    return sorted(files | {_file_of(METHODS[config.method.name]), _file_of(NETS[config.net.name])})


def _file_of(cls: type) -> Path:
    return Path(inspect.getfile(cls))


def run_name(config: Config, data_digest: str) -> str:
    """Return the name of the run: method, noise, and a hash of all that decides its weights.

    Where it runs and how it is recorded (workers, storage, tracking, caches) is no part of the hash: the same run may
    continue on another cluster.
    """
    identity = {**_decisive(to_dict(config)), "data": data_digest, "code": code_digest(config)}
    return f"{config.method.name}-{config.noise}-{digest(identity)[:10]}"


def _decisive(tree: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: tree[key] for key in ("seed", "noise", "method", "net", "train")}
    return {**kept, "colour": tree["data"]["colour"]}
