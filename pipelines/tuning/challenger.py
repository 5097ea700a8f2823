"""The model of a sweep's best trial: exported from its last checkpoint and registered as @challenger."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from denoise.errors import UserError
from pipelines.console import say
from pipelines.tuning.plan import Plan
from pipelines.tuning.space import trial_config

MODEL = "model"  # folder of the model, in the sweep's folder


@dataclass(frozen=True)
class Challenger:
    """The model of the best trial."""

    folder: Path
    name: str  # of the registered model, empty where MLflow did not answer
    version: str


def register_challenger(plan: Plan, best: dict[str, Any], folder: Path) -> Challenger:
    """Export the model of the best trial (of its first seed) and register it as @challenger, without a score.

    It is not promoted: that needs a score, as for every model.

    Args:
        plan: the sweep.
        best: the row of its best trial in the results.
        folder: of the sweep.
    """
    from denoise.errors import first_line
    from pipelines.registry.promotion import set_challenger
    from pipelines.registry.versions import register
    from pipelines.storage.checkpoints import open_store
    from pipelines.tracking.client import existing_run_id
    from pipelines.tracking.model import log_model
    from pipelines.training.inputs import export_model, training_inputs

    sweep, base, seed = plan.sweep, plan.base, plan.sweep.seeds[0]
    config = trial_config(sweep, base, {key: best[key] for key in sweep.space}, seed)
    name = plan.run_names(best["trial"])[seed]
    metrics = export_model(config, open_store(base.ray.storage, name), folder / MODEL)
    figures = {key: value for key, value in metrics.items() if key.startswith("val_") or key == "loss"}
    try:
        run_id = existing_run_id(base.tracking.uri, base.tracking.experiment, name)
        log_model(base.tracking.uri, run_id, folder / MODEL, training_inputs(config, name).example(config), figures)
        row = register(base.tracking.uri, folder / MODEL, None, run_id)
        set_challenger(base.tracking.uri, row["name"], row["version"])
    except UserError as error:
        say(f"warning: the model of trial {best['trial']} is not registered ({first_line(error)}).")
        return Challenger(folder / MODEL, "", "")
    return Challenger(folder / MODEL, row["name"], row["version"])
