"""The images of a sweep: history, parallel coordinates, importance and slices, as PNG and on one page."""

import html
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.tuning.space import Sweep

if TYPE_CHECKING:
    import optuna

PAGE = "sweep.html"  # one file that needs no network, to zoom and point at
PLOTS = {
    "history": "plot_optimization_history",
    "parallel": "plot_parallel_coordinate",
    "slice": "plot_slice",
    "importance": "plot_param_importances",
}
FEWEST = 2  # finished trials, without which there is nothing to compare


def draw(study: "optuna.Study", folder: Path, sweep: Sweep) -> list[Path]:
    """Write NAME.png for every image, and one page with all of them, of the first objective."""
    from optuna.trial import TrialState

    if len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))) < FEWEST:
        return []
    target = {} if len(sweep.objectives) == 1 else {"target": lambda trial: trial.values[0]}
    named = {"target_name": sweep.objectives[0], **target}
    return [*_pngs(study, folder, named), _page(study, folder, named, sweep.title)]


def _pngs(study: "optuna.Study", folder: Path, named: dict[str, Any]) -> list[Path]:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from optuna.visualization import matplotlib as plots

    written = []
    for name, axes in _each(plots, study, named):
        figure = axes.flat[0].figure if hasattr(axes, "flat") else axes.figure
        figure.set_size_inches(10, 5)
        written.append(folder / f"{name}.png")
        figure.savefig(written[-1], dpi=100, bbox_inches="tight")
        plt.close(figure)
    return written


def _page(study: "optuna.Study", folder: Path, named: dict[str, Any], title: str) -> Path:
    from optuna import visualization

    parts = [
        figure.to_html(full_html=False, include_plotlyjs=number == 0)
        for number, (_, figure) in enumerate(_each(visualization, study, named))
    ]
    page = folder / PAGE
    page.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n",
        encoding="utf-8",
    )
    return page


def _each(plots: Any, study: "optuna.Study", named: dict[str, Any]) -> "list[tuple[str, Any]]":
    """Return the images that can be drawn: importance needs parameters that differ."""
    made = []
    for name, function in PLOTS.items():
        plot: Callable[..., Any] = getattr(plots, function)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna's matplotlib images are called experimental
            try:
                made.append((name, plot(study, **named, **_own(name))))
            except (ValueError, RuntimeError):
                continue
    return made


def _own(name: str) -> dict[str, Any]:
    """Return what one image needs and the others do not know."""
    from optuna.importance import FanovaImportanceEvaluator

    return {"evaluator": FanovaImportanceEvaluator(seed=0)} if name == "importance" else {}
