"""The model of a sweep's best trial: out of its last checkpoint, into the registry as @challenger."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoise.errors import UserError
from pipelines.console import say
from pipelines.tuning.space import trial_config

if TYPE_CHECKING:
    from pipelines.tuning.plan import Plan

MODEL = "model"  # folder of the sweep's


@dataclass(frozen=True)
class Challenger:
    """The model of the best trial."""

    folder: Path
    name: str  # registered, empty where MLflow did not answer
    version: str


def register_challenger(plan: "Plan", best: dict[str, Any], folder: Path) -> Challenger:
    """Export the best trial's model (its first seed's) and register it, without a score, as @challenger.

    Promotion is another matter: it needs a score, like that of every model.
    """
    from denoise.errors import first_line
    from pipelines.registry.promotion import challenge
    from pipelines.registry.versions import register
    from pipelines.storage.checkpoints import open_store
    from pipelines.tracking.client import run_of_model
    from pipelines.tracking.model import log_model
    from pipelines.training.inputs import export_model, training_inputs
    from pipelines.tuning.trial import run_names

    sweep, base = plan.sweep, plan.base
    seed = sweep.seeds[0]
    config = trial_config(sweep, base, {key: best[key] for key in sweep.space}, seed)
    name = run_names(sweep, plan.name, best["trial"])[seed]
    figures = export_model(config, open_store(base.ray.storage, name), folder / MODEL)
    kept = {key: value for key, value in figures.items() if key.startswith("val_") or key == "loss"}
    try:
        run_id = run_of_model(base.tracking.uri, base.tracking.experiment, name)
        log_model(base.tracking.uri, run_id, folder / MODEL, training_inputs(config, name).example(config), kept)
        row = register(base.tracking.uri, folder / MODEL, None, run_id)
        challenge(base.tracking.uri, row["name"], row["version"])
    except UserError as error:
        say(f"warning: the model of trial {best['trial']} is not registered ({first_line(error)}).")
        return Challenger(folder / MODEL, "", "")
    return Challenger(folder / MODEL, row["name"], row["version"])
