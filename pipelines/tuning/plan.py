"""A sweep, ready to run anywhere: every value of its space checked, and addresses that other machines understand."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from denoise.config import Config, flatten, from_dict, to_dict
from pipelines.storage.checkpoints import absolute
from pipelines.tracking import client as tracking
from pipelines.tracking.runs import RunSpec
from pipelines.training.inputs import training_inputs
from pipelines.tuning.space import Dimension, Sweep, boundary_configs, sweep_name, trial_config


@dataclass(frozen=True)
class Plan:
    """A sweep, ready to run anywhere."""

    name: str
    sweep: Sweep
    base: Config  # with absolute addresses
    data_digest: str  # of the training images

    def run_spec(self) -> RunSpec:
        """Return what opens the sweep's run in MLflow."""
        params = {f"space.{key}": _words(one) for key, one in self.sweep.space.items()}
        kept = {key: getattr(self.sweep, key) for key in ("trials", "sampler", "pruner", "objectives", "seeds", "seed")}
        return RunSpec(
            self.base.tracking.uri,
            self.base.tracking.experiment,
            self.name,
            tags={"mlflow.source.name": "denoise tune", "denoise.sweep": self.name, "title": self.sweep.title},
            params={**flatten(to_dict(self.base)), **params, **{f"sweep.{key}": kept[key] for key in kept}},
        )


def plan(sweep: Sweep, config: Config, kind: str, name: str | None = None) -> Plan:
    """Return a sweep with every value of its space checked, and addresses that other machines understand.

    Args:
        sweep: what to search.
        config: what all trials share.
        kind: the first word of the name, where none is given: the same command then finds its sweep again.
        name: of the sweep.

    Raises:
        UserError: a value that cannot be trained, or shards that are missing.
    """
    from denoise.training.loop import check

    train = dataclasses.replace(config.train, val_loss=config.train.val_loss or "val_loss" in sweep.objectives)
    data = dataclasses.replace(config.data, root=str(Path(config.data.root).absolute()))
    ray = dataclasses.replace(config.ray, storage=absolute(config.ray.storage))
    where = dataclasses.replace(config.tracking, uri=tracking.resolve_uri(config.tracking.uri, Path.cwd()))
    base = from_dict(to_dict(dataclasses.replace(config, train=train, data=data, ray=ray, tracking=where)))
    for params in boundary_configs(sweep):
        one = trial_config(sweep, base, params, sweep.seeds[0])
        check(one)
    inputs = training_inputs(one, kind)
    found = inputs.versions["data_digest"]
    return Plan(name or sweep_name(sweep, base, found, kind), sweep, base, found)


def _words(one: Dimension) -> str:
    kind = "choice" if one.choice else "float" if one.float else "int"
    return f"{kind} {list(one.ends())}{' log' if one.log else ''}"
