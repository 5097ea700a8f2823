"""What Ray Tune runs for a trial: a training run on Ray for each seed, all in MLflow below the sweep's run."""

import json
import math
from collections.abc import Mapping
from typing import Any

import ray
from ray import tune

from denoise.config import Config, build, from_dict
from denoise.errors import UserError
from pipelines.training.common import Stopped
from pipelines.training.on_ray import train_part
from pipelines.tuning.ray_search import END, RATE, RUNG, VALUE
from pipelines.tuning.space import Sweep, trial_config

SWEEP_TAG, TRIAL_TAG, SEED_TAG, PARENT_TAG = "denoise.sweep", "denoise.trial", "denoise.seed", "mlflow.parentRunId"


def run_trial(asked: Mapping[str, Any], task: Mapping[str, Any]) -> None:
    """Train as a trial's parameters say, and report how that ended.

    Args:
        asked: number and params of the trial.
        task: what all trials share: the sweep's name, the sweep, the base configuration, the id of its MLflow run,
            and the ``verdicts``.
    """
    sweep, base = build(Sweep, task["sweep"]), from_dict(task["base"])
    try:
        figures = {seed: _train(task, sweep, base, asked, seed) for seed in sweep.seeds}
    except UserError as error:
        tune.report({END: json.dumps({"failed": str(error)})})
        return
    except Stopped:
        tune.report({END: json.dumps({"pruned": True})})
        return
    config = trial_config(sweep, base, asked["params"], 0)
    tune.report({END: json.dumps({"figures": figures, "images": config.train.steps * config.train.batch_size})})


def run_names(sweep: Sweep, name: str, number: int) -> dict[int, str]:
    """Return the names of a trial's training runs by seed."""
    trial = f"{name}-{number:03d}"
    return {seed: trial if len(sweep.seeds) == 1 else f"{trial}-seed{seed}" for seed in sweep.seeds}


def _train(
    task: Mapping[str, Any], sweep: Sweep, base: Config, asked: Mapping[str, Any], seed: int
) -> dict[str, float]:
    """Train with one seed and return the last figures; the first seed's validations are what pruning goes by."""
    config = trial_config(sweep, base, asked["params"], seed)

    def heed(row: Mapping[str, float]) -> bool:
        if seed != sweep.seeds[0]:
            return False
        rung, value = round(row["step"] / config.train.eval_every), row.get(sweep.objectives[0], math.nan)
        try:
            tune.report({RUNG: rung, VALUE: value, RATE: row["images_per_second"]})  # returns when it has been heard
        except SystemExit:  # so Tune ends a thread where it ends the trial
            return True
        return bool(ray.get(task["verdicts"].is_pruned.remote(asked["number"])))

    tags = {SWEEP_TAG: task["name"], TRIAL_TAG: asked["number"], SEED_TAG: seed}
    if task["parent"]:
        tags[PARENT_TAG] = task["parent"]
    return dict(train_part(config, run_names(sweep, task["name"], asked["number"])[seed], tags, heed))
