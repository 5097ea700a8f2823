"""``denoise tune`` and ``denoise sweeps``: searches of hyperparameters."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from denoise.errors import UsageError
from pipelines.cli.common import AsJson, Overrides, Settings, all_overrides, answer, configuration

if TYPE_CHECKING:
    from pipelines.tuning.plan import Plan
    from pipelines.tuning.sweep import SweepOutcome

app = typer.Typer(help="List sweeps and their results.", no_args_is_help=True, rich_markup_mode=None)


def tune(
    space: Annotated[
        str | None, typer.Argument(help="A sweep by name, a method (its own fields), or a YAML file.")
    ] = None,
    overrides: Overrides = None,
    trials: Annotated[int | None, typer.Option(min=1, help="How many configurations.")] = None,
    sampler: Annotated[str | None, typer.Option(help="random, tpe, gp, cmaes, grid or nsga2.")] = None,
    pruner: Annotated[str | None, typer.Option(help="none, asha, hyperband or median.")] = None,
    images: Annotated[int | None, typer.Option(min=1, help="A trial's length, in training images.")] = None,
    evaluations: Annotated[int | None, typer.Option(min=1, help="Validations of a trial, evenly spread.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the sampler.")] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Trials at a time; by default as many as there is room for.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the sweep; the same name resumes it.")] = None,
    resume: Annotated[str | None, typer.Option(metavar="ID", help="Resume the sweep of that name.")] = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Search hyperparameters. The same command, or --resume, resumes an interrupted sweep.

    Example: denoise tune ee559-random train.crop=32 --trials 20

    Example: denoise tune n2v --sampler tpe --pruner asha
    """
    options = {"trials": trials, "sampler": sampler, "pruner": pruner, "seed": seed}
    options |= {"images": images, "evaluations": evaluations}
    if resume is not None:
        if space and "=" in space:  # there is no SPACE then
            overrides, space = [space, *(overrides or [])], None
        if space or any(value is not None for value in (*options.values(), name)):
            raise UsageError("--resume ID continues that sweep as it was; leave SPACE, --trials and the like away.")
        sweep_plan = _plan_resumed(resume, all_overrides(overrides, settings))
    elif space is None:
        _list_spaces(as_json)
        return
    else:
        sweep_plan = _plan(space, all_overrides(overrides, settings), options, name)
    outcome = _run(sweep_plan, all_overrides(overrides, settings), concurrency)
    document = {
        **outcome.results.summary(),
        "model": str(outcome.challenger.folder),
        "version": outcome.challenger.version,
    }
    answer(document, _text(outcome), as_json)


@app.command("list")
def list_(settings: Settings = None, as_json: AsJson = False) -> None:
    """List all sweeps in tune.storage: how many trials have ended in which state, and the best value.

    Example: denoise sweeps list --json
    """
    from pipelines.tuning.study import list_sweeps

    rows = list_sweeps(configuration(settings).tune.storage)
    answer(rows, "\n".join(map(_line, rows)) or "there are no sweeps yet", as_json)


def _plan(space: str, overrides: list[str], options: dict[str, Any], name: str | None) -> "Plan":
    from pathlib import Path

    from pipelines.tuning.overrides import refuse_ineffective
    from pipelines.tuning.plan import plan
    from pipelines.tuning.space import load_sweep, with_options

    sweep = with_options(load_sweep(space), options)
    config = configuration(overrides, sweep.config)
    refuse_ineffective(overrides, sweep, config)
    return plan(sweep, config, Path(space).stem, name)


def _plan_resumed(name: str, overrides: list[str]) -> "Plan":
    from pipelines.tuning.overrides import refuse_changes
    from pipelines.tuning.plan import plan
    from pipelines.tuning.space import from_identity
    from pipelines.tuning.study import stored_identity

    refuse_changes(overrides)
    known = stored_identity(configuration(overrides).tune.storage, name)
    sweep, base = from_identity(known, configuration(overrides, known["sweep"]["config"]))
    return plan(sweep, base, name, name)


def _run(sweep_plan: "Plan", overrides: list[str], concurrency: int | None) -> "SweepOutcome":
    from pipelines.cli.next_commands import line
    from pipelines.console import say
    from pipelines.tuning.overrides import to_repeat
    from pipelines.tuning.sweep import run_sweep

    resume = line("tune", "--resume", sweep_plan.name, *to_repeat(overrides))
    say(f"{sweep_plan.name}: to resume it: {resume}")
    try:
        return run_sweep(sweep_plan, concurrency)
    except KeyboardInterrupt:
        say(f"interrupted; to resume it: {resume}")
        raise typer.Exit(130) from None


def _list_spaces(as_json: bool) -> None:
    from pipelines.tuning.space import load_sweep, names

    titles = {name: load_sweep(name).title for name in names()}
    width = max(map(len, titles))
    lines = [f"{name:{width}}  {title}" for name, title in titles.items()]
    answer(titles, "\n".join([*lines, "or the name of a method, to search its own fields"]), as_json)


def _text(outcome: "SweepOutcome") -> str:
    from pipelines.cli.next_commands import to_champion
    from pipelines.tuning.live_table import as_overrides
    from pipelines.tuning.plots import PAGE
    from pipelines.tuning.results import TABLE

    results, model, plan = outcome.results, outcome.challenger, outcome.results.plan
    best, sweep = results.best or {}, plan.sweep
    objectives = ", ".join(f"{key} {best[key]:.4g}" for key in sweep.objectives)
    folder = model.folder.parent
    table = folder / (PAGE if (folder / PAGE).is_file() else TABLE)
    commands = to_champion(plan.base, model.folder, plan.name)
    return "\n".join(
        [
            f"best: trial {best['trial']}, {as_overrides({key: best[key] for key in sweep.space})}: {objectives}",
            f"trials: {_states(results.summary())}; {table} shows them",
            f"model: {model.folder}" + (f", {model.name} version {model.version} @challenger" if model.name else ""),
            "to make it @champion, if it is better:" if commands else "data.test names no set to score the model on",
            *(f"  {command}" for command in commands),
        ]
    )


def _line(row: dict[str, Any]) -> str:
    best = f"  best {row['best']:.4g}" if row["best"] is not None else ""
    return f"{row['name']}  {_states(row) or 'no trials'}{best}"


def _states(summary: dict[str, Any]) -> str:
    """Return how many trials are in which state."""
    return ", ".join(f"{count} {state}" for state, count in summary["trials"].items() if count)
