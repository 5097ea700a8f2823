"""A sweep, ready to run: every value checked, addresses that other machines understand, and its names in MLflow."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

from denoise.config import Config, flatten, from_dict, recorded, to_dict
from denoise.files import require_name
from pipelines.storage.checkpoints import absolute
from pipelines.tracking import client as tracking
from pipelines.tracking.runs import RunSpec
from pipelines.training.inputs import training_inputs
from pipelines.training.teacher import with_teacher
from pipelines.tuning.space import Dimension, Sweep, boundary_configs, sweep_name, trial_config

# Tags of MLflow runs. The sweep's has the first; its trials' have all of them.
SWEEP_TAG, TRIAL_TAG, SEED_TAG, PARENT_TAG = "denoise.sweep", "denoise.trial", "denoise.seed", "mlflow.parentRunId"
SWEEP_PARAMS = ("trials", "sampler", "pruner", "objectives", "seeds", "seed")  # of a Sweep, shown in MLflow


@dataclass(frozen=True)
class Plan:
    """A sweep, ready to run anywhere."""

    name: str
    sweep: Sweep
    base: Config  # what all trials share, with absolute addresses
    data_digest: str  # of the training images

    def run_spec(self) -> RunSpec:
        """Return the definition of the sweep's run in MLflow."""
        space = {f"space.{key}": _dimension_text(dimension) for key, dimension in self.sweep.space.items()}
        settings = {f"sweep.{key}": getattr(self.sweep, key) for key in SWEEP_PARAMS}
        return RunSpec(
            self.base.tracking.uri,
            self.base.tracking.experiment,
            self.name,
            tags={"mlflow.source.name": "denoise tune", SWEEP_TAG: self.name, "title": self.sweep.title},
            params={**flatten(recorded(self.base)), **space, **settings},
        )

    def run_names(self, trial: int) -> dict[int, str]:
        """Return the names of a trial's training runs by seed."""
        name = f"{self.name}-{trial:03d}"
        return {seed: name if len(self.sweep.seeds) == 1 else f"{name}-seed{seed}" for seed in self.sweep.seeds}


def plan(sweep: Sweep, config: Config, kind: str, name: str | None = None) -> Plan:
    """Return a sweep with every value of its space checked, and addresses that other machines understand.

    Args:
        sweep: what to search.
        config: what all trials share.
        kind: the first word of the name, where none is given: the same command then finds its sweep again.
        name: of the sweep.

    Raises:
        UserError: a value that cannot be trained, shards that are missing, or a name that cannot be a folder's.
    """
    from denoise.training.setup import build_components

    if name is not None:
        require_name(name, "--name")
    config = with_teacher(config)
    train = dataclasses.replace(config.train, val_loss=config.train.val_loss or "val_loss" in sweep.objectives)
    data = dataclasses.replace(config.data, root=str(Path(config.data.root).absolute()))
    ray = dataclasses.replace(config.ray, storage=absolute(config.ray.storage))
    where = dataclasses.replace(config.tracking, uri=tracking.resolve_uri(config.tracking.uri, Path.cwd()))
    base = from_dict(to_dict(dataclasses.replace(config, train=train, data=data, ray=ray, tracking=where)))
    base = _settled(base, sweep)
    for params in boundary_configs(sweep):
        trial = trial_config(sweep, base, params, sweep.seeds[0])
        build_components(trial)
    data_digest = training_inputs(trial, kind).versions["data_digest"]
    name = name or sweep_name(sweep, base, data_digest, re.sub(r"[^A-Za-z0-9._+=,-]+", "-", kind))
    return Plan(name, sweep, base, data_digest)


def _settled(base: Config, sweep: Sweep) -> Config:
    """Return the base with its net and crop settled, unless every trial has to settle them for itself."""
    from denoise.methods import with_net

    return base if sweep.space.keys() & {"method", "net", "train.optimizer"} else with_net(base)


def _dimension_text(dimension: Dimension) -> str:
    kind = "choice" if dimension.choice else "float" if dimension.float else "int"
    return f"{kind} {list(dimension.ends())}{' log' if dimension.log else ''}"
