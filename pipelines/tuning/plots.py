"""Plots of a sweep: history, parallel coordinates, importance and slices, as PNG files and on one page."""

import html
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.tuning.space import Sweep

if TYPE_CHECKING:
    import optuna

PAGE = "sweep.html"  # all plots in one file, interactive without a network
PLOTS = {
    "history": "plot_optimization_history",
    "parallel": "plot_parallel_coordinate",
    "slice": "plot_slice",
    "importance": "plot_param_importances",
}
MIN_TRIALS = 2  # finished ones, to have something to compare


def write_plots(study: "optuna.Study", folder: Path, sweep: Sweep) -> list[Path]:
    """Write NAME.png for every plot and one page with all of them, for the first objective; return the files."""
    from optuna.trial import TrialState

    if len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) < MIN_TRIALS:
        return []
    target = {} if len(sweep.objectives) == 1 else {"target": lambda trial: trial.values[0]}
    options = {"target_name": sweep.objectives[0], **target}
    return [*_write_pngs(study, folder, options), _write_page(study, folder, options, sweep.title)]


def _write_pngs(study: "optuna.Study", folder: Path, options: dict[str, Any]) -> list[Path]:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from optuna.visualization import matplotlib as backend

    files = []
    for name, axes in _plots(backend, study, options):
        figure = axes.flat[0].figure if hasattr(axes, "flat") else axes.figure
        figure.set_size_inches(10, 5)
        files.append(folder / f"{name}.png")
        figure.savefig(files[-1], dpi=100, bbox_inches="tight")
        plt.close(figure)
    return files


def _write_page(study: "optuna.Study", folder: Path, options: dict[str, Any], title: str) -> Path:
    from optuna import visualization as backend

    parts = [
        figure.to_html(full_html=False, include_plotlyjs=number == 0)
        for number, (_, figure) in enumerate(_plots(backend, study, options))
    ]
    page = folder / PAGE
    page.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n",
        encoding="utf-8",
    )
    return page


def _plots(backend: Any, study: "optuna.Study", options: dict[str, Any]) -> "list[tuple[str, Any]]":
    """Return the plots that can be drawn, by name: importance needs parameters that differ."""
    plots = []
    for name, function in PLOTS.items():
        plot: Callable[..., Any] = getattr(backend, function)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna calls its matplotlib plots experimental
            try:
                plots.append((name, plot(study, **options, **_own_options(name))))
            except (ValueError, RuntimeError):
                continue
    return plots


def _own_options(name: str) -> dict[str, Any]:
    """Return the options that only the plot of this name takes."""
    from optuna.importance import FanovaImportanceEvaluator

    return {"evaluator": FanovaImportanceEvaluator(seed=0)} if name == "importance" else {}
