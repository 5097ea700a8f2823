"""A study in MLflow: one run, with the runs of its trainings below it, and its report among its files."""

from collections.abc import Callable, Mapping
from pathlib import Path

from denoise.config import Config, flatten
from denoise.errors import UserError, first_line
from pipelines.console import say
from pipelines.studies.plan import Unit
from pipelines.studies.results import StudyRun
from pipelines.tracking.client import client, existing_run, plain_errors, resolve_uri
from pipelines.tracking.runs import RunSpec
from pipelines.tuning.plan import PARENT_TAG, SEED_TAG

STUDY_TAG, ROW_TAG = "denoise.study", "denoise.row"


def parent_spec(run: StudyRun, config: Config) -> RunSpec:
    """Return the definition of a study's run in MLflow."""
    name = f"study-{run.name}-{run.budget}"
    return RunSpec(
        resolve_uri(config.tracking.uri, Path.cwd()),
        config.tracking.experiment,
        name,
        tags={
            "mlflow.source.name": "denoise study run",
            STUDY_TAG: f"{run.name}/{run.budget}",
            "title": run.definition["title"],
            **({"stand_in": run.stand_in} if run.stand_in else {}),
        },
        params=flatten({"study": run.name, "budget": run.budget, "rows": list(run.rows), "seeds": list(run.seeds)}),
    )


def run_id(spec: RunSpec) -> str:
    """Return the id of the study's run in MLflow; empty where that does not answer."""
    try:
        run = existing_run(spec.uri, spec.experiment, spec.name)
    except UserError:
        return ""
    return str(run.info.run_id) if run else ""


def child_tags(run: StudyRun, parent: str) -> Callable[[Unit], Mapping[str, object]]:
    """Return the function that gives the tags of a unit's run: its study, its rows, and the run it stands below."""

    def tags(unit: Unit) -> Mapping[str, object]:
        rows = " | ".join(dict.fromkeys(cell.row for cell in unit.cells))
        shared = {STUDY_TAG: f"{run.name}/{run.budget}", ROW_TAG: rows, SEED_TAG: unit.cells[0].seed}
        return {**shared, **({PARENT_TAG: parent} if parent else {})}

    return tags


def publish(run: StudyRun, config: Config, folder: Path) -> None:
    """Log a study's report and figures to its run; where MLflow does not answer, say so."""
    from pipelines.studies.figures import MissingFigureError, mean_score

    spec = parent_spec(run, config)
    try:
        parent = run_id(spec)
        if not parent:
            return
        with plain_errors(spec.uri):
            api = client(spec.uri)
            for file in sorted(path for path in folder.iterdir() if path.suffix in (".html", ".md", ".json")):
                api.log_artifact(parent, str(file), "study")
            for number, row in enumerate(run.rows):
                for cell in (cell for cell in run.cells if cell.row == row):
                    try:
                        api.log_metric(parent, f"psnr.{number:02d}-seed{cell.seed}", mean_score(cell, "psnr"))
                    except MissingFigureError:
                        continue
    except UserError as error:
        say(f"warning: MLflow lacks the report of {run.name} ({first_line(error)}); it is in {folder}.")
