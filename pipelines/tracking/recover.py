"""Bring a trained model's run into an MLflow that does not know it: a database that is new, or another server."""

import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from denoise.config import flatten
from denoise.denoiser import read_card
from denoise.documents import parse_json
from denoise.errors import UserError
from denoise.files import require_name
from denoise.redaction import redacted
from pipelines.console import say
from pipelines.tracking.client import existing_run
from pipelines.tracking.journal import RUN, Journal
from pipelines.tracking.lifecycle import journal_folder, sync
from pipelines.tracking.model import EXAMPLE_SIDE
from pipelines.tracking.runs import DataUse, RunSpec

LOG = "metrics.jsonl"  # of a model folder: what was logged while it was trained
FIGURES = ("loss", "val_psnr", "val_ssim")  # that MLflow shows beside the model


def run_of_model(uri: str, experiment: str, storage: str, model: Path) -> str:
    """Return the id of the MLflow run that a model folder comes from; where there is none, it is made again.

    What the run logged comes from its journal, or from the model folder where the journal is on another machine.

    Args:
        uri: absolute tracking uri.
        experiment: in which the run is.
        storage: ``ray.storage``, where the journals of runs are.
        model: the model folder.

    Raises:
        UserError: the folder is no model, or its card names no run.
    """
    name = read_card(model).get("provenance", {}).get("run")
    if name is None:
        raise UserError(f"the card of {model} names no run: train the model again.")
    run = existing_run(uri, experiment, name)
    if run is not None:
        run_id: str = run.info.run_id
        return run_id
    say(f"{name}: this MLflow does not know the run of {model}; it is entered again.")
    folder = journal_folder(storage, require_name(name, f"the run in the card of {model}"))
    _complete_journal(Journal(folder), uri, experiment, model)
    return sync(folder, uri).run_id


def _complete_journal(journal: Journal, uri: str, experiment: str, model: Path) -> None:
    """Let the journal of a finished run hold all that MLflow is to get."""
    import numpy as np

    card, rows = read_card(model), _read_log(model)
    if (journal.folder / RUN).is_file():
        spec = replace(journal.run_spec(), uri=uri, experiment=experiment)
    else:
        spec = _spec(card, uri, experiment)
        for row in rows:
            journal.append_metrics(int(row["step"]), {key: row[key] for key in row.keys() - {"step"}})
    journal.write_spec(spec)
    figures = {key: value for row in rows[-1:] for key, value in row.items() if key in FIGURES}
    example = np.full((1, card["channels"], EXAMPLE_SIDE, EXAMPLE_SIDE), 0.5, np.float32)
    journal.set_model(model, figures, example)
    journal.set_status("FINISHED")


def _spec(card: dict[str, Any], uri: str, experiment: str) -> RunSpec:
    """Return the definition of the run that a model card describes."""
    provenance = card["provenance"]
    parts = [DataUse(part["name"], part["split"], part["digest"], "") for part in provenance.get("data", [])]
    tags = {
        "method": card["method"]["name"],
        "noise": card["noise"],
        "data": ",".join(part.name for part in parts if part.context == "train"),
        "code_digest": provenance.get("code_digest", ""),
    }
    params = flatten(redacted(card["config"]))
    return RunSpec(uri, experiment, provenance["run"], tags=tags, params=params, datasets=tuple(parts))


def _read_log(model: Path) -> list[dict[str, float]]:
    """Return the rows of a model folder's log, none where it has no log; a line that a kill cut short is left out."""
    file = model / LOG
    rows = []
    for line in file.read_bytes().splitlines() if file.is_file() else ():
        with suppress(AttributeError, OverflowError, ValueError):
            row = parse_json(line)
            values = {key: float(value) for key, value in row.items() if isinstance(value, int | float)}
            if math.isfinite(values.get("step", math.nan)):
                rows.append(values)
    return rows
