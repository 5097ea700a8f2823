"""``denoise study``: published tables as commands."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from denoise.errors import UsageError, UserError
from denoise.redaction import without_passwords
from pipelines.cli.common import PARAMS, AsJson, Settings, all_overrides, answer, configuration

if TYPE_CHECKING:
    from pipelines.studies.definition import Study
    from pipelines.studies.results import Cell, StudyRun

app = typer.Typer(
    help="Reproduce published tables: run their rows, and show our figures beside the published ones.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(help="A study by name (`denoise study list`), or a YAML file of your own.")]
BudgetOption = Annotated[str, typer.Option(help="How long: smoke (minutes on two cores), short, or paper.")]


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the studies that are installed.

    Example: denoise study list
    """
    from pipelines.studies.definition import load_study, names

    studies = {name: load_study(name) for name in names()}
    width = max(map(len, studies), default=0)
    rows = {name: {"title": study.title, "rows": len(study.all_rows())} for name, study in studies.items()}
    lines = [f"{name:{width}}  {row['rows']:3} rows  {row['title']}" for name, row in rows.items()]
    answer(rows, "\n".join(lines), as_json)


@app.command()
def show(
    name: Name,
    budget: BudgetOption = "smoke",
    as_json: AsJson = False,
) -> None:
    """Show a study: its rows with the published figures, how long each budget trains, and what must hold.

    Example: denoise study show ssdn-table1
    """
    from dataclasses import asdict

    from pipelines.studies.definition import load_study

    study = load_study(name)
    answer(asdict(study), _description(study, budget), as_json)


@app.command()
def run(
    name: Name,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Keys of params.yaml for all rows.")
    ] = None,
    budget: BudgetOption = "smoke",
    rows: Annotated[list[str] | None, typer.Option(help="A row by name; repeat for several. Default: all.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds, e.g. 0,1,2. Default: those of the budget.")] = None,
    stand_in: Annotated[
        bool, typer.Option("--stand-in", help="Let other images stand in for published ones that are not there.")
    ] = False,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.1, help="Train every row so long, in place of the budget's steps; its speed is measured first."
        ),
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Trainings at a time; by default as many as there is room for.")
    ] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Run a study: train and score every row that has no result yet, side by side, and write the report.

    The same command goes on after an interruption; what is finished is not run again.

    Example: denoise study run ssdn-table1 --budget smoke --stand-in

    Example: denoise study run ee559-loss --seeds 0,1,2 --rows L1 --rows L2
    """
    from pipelines.console import say
    from pipelines.studies.definition import load_study, study_name
    from pipelines.studies.mlflow_run import publish
    from pipelines.studies.results import study_folder
    from pipelines.studies.run import Options, run_study

    study, command = load_study(name), shlex.join(["denoise", *map(without_passwords, sys.argv[1:])])
    options = Options(
        budget,
        tuple(rows or ()),
        _seeds(seeds),
        stand_in=stand_in,
        minutes=minutes,
        concurrency=concurrency,
        command=command,
    )
    changes = all_overrides(overrides, settings)
    try:
        result = run_study(study_name(name), study, PARAMS, changes, options)
    except KeyboardInterrupt:
        say(f"interrupted; to go on: {command}")
        raise typer.Exit(130) from None
    _answer(result, as_json)
    publish(result, configuration(changes), study_folder(result.name, result.budget))
    if failures := [cell for cell in result.cells if cell.failure]:
        row, reason = failures[0].row, failures[0].failure
        raise UserError(f"{len(failures)} results of the study are failures, the first that of {row}: {reason}")


@app.command()
def report(
    name: Name,
    budget: BudgetOption = "smoke",
    into: Annotated[
        Path | None, typer.Option(help="A Markdown page to put the table into, in place of an earlier one.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the report of a study anew, from the results that are there.

    Example: denoise study report ssdn-table1 --budget smoke

    Example: denoise study report ssdn-table1 --budget short --into docs/results.md
    """
    stored = _stored(name, budget)
    _answer(stored, as_json)
    if into is not None:
        from pipelines.studies.results_page import write_section

        write_section(into, stored)


@app.command()
def status(
    name: Name,
    budget: BudgetOption = "smoke",
    as_json: AsJson = False,
) -> None:
    """Say which rows of a study have results, which failed, and which are still missing.

    Example: denoise study status ssdn-table1
    """
    stored = _stored(name, budget)
    cells = {(cell.row, cell.seed): cell for cell in stored.cells}
    states = [(row, seed, _state(cells.get((row, seed)))) for row in stored.rows for seed in stored.seeds]
    width = max(len(row) for row in stored.rows)
    text = "\n".join(f"{row:{width}}  seed {seed}  {state}" for row, seed, state in states)
    answer([{"row": row, "seed": seed, "state": state} for row, seed, state in states], text, as_json)


def _stored(name: str, budget: str) -> "StudyRun":
    from pipelines.studies.definition import study_name
    from pipelines.studies.results import read_run, study_folder

    return read_run(study_folder(study_name(name), budget))


def _answer(result: "StudyRun", as_json: bool) -> None:
    """Write the report of a study and print its table, with what held."""
    from pipelines.studies.hold import verdicts
    from pipelines.studies.report import write_study_report
    from pipelines.studies.results import study_folder
    from pipelines.studies.text_table import text_table

    page = write_study_report(study_folder(result.name, result.budget))
    found = verdicts(result)
    held = [f"{verdict.outcome}: {verdict.expression}  [{verdict.detail}]" for verdict in found]
    lines = [text_table(result), "", *held]
    document: dict[str, Any] = {
        "study": result.name,
        "budget": result.budget,
        "stand_in": result.stand_in,
        "rows": [_figures(cell) for cell in result.cells],
        "hold": [vars(verdict) for verdict in found],
        "report": str(page),
    }
    stand_in = [f"stand-in images: {result.stand_in}"] * bool(result.stand_in)
    answer(document, "\n".join([*stand_in, *lines, f"report: {page}"]), as_json)


def _figures(cell: "Cell") -> dict[str, Any]:
    scores = {
        name: {key: score.get(key) for key in ("noisy_psnr", "psnr", "ssim")} for name, score in cell.scores.items()
    }
    return {"row": cell.row, "seed": cell.seed, "failure": cell.failure, "scores": scores}


def _state(cell: "Cell | None") -> str:
    if cell is None:
        return "missing"
    return f"failed: {cell.failure}" if cell.failure else "done"


def _seeds(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UsageError(f"--seeds {text} should be whole numbers with commas between, e.g. 0,1,2.") from None


def _description(study: "Study", budget: str) -> str:
    from pipelines.studies.definition import chosen
    from pipelines.studies.plan import row_config

    chosen("budget", [budget], list(study.budgets))
    lines = [study.title, study.source, study.note, ""]
    for row in study.all_rows():
        config = row_config(study, row, budget, params=PARAMS)
        published = "; ".join(f"{label} {figures}" for label, figures in row.published.items())
        steps = f"{config.train.steps} steps of {config.train.batch_size}"
        lines.append(f"{row.name}: {config.method.name}, {config.noise}, {steps}" + f"; {published}" * bool(published))
    hold = [f"must hold ({key}): {expression}" for key, group in study.hold.items() for expression in group]
    budgets = ", ".join(f"{key} (seeds {', '.join(map(str, entry.seeds))})" for key, entry in study.budgets.items())
    return "\n".join(line for line in [*lines, "", f"budgets: {budgets}", *hold])
