"""Results of a sweep: log lines, the live table, plots, the summary."""

from types import SimpleNamespace

import pytest
from rich.console import Console

from denoise.config import Config
from pipelines.tuning.live_table import LiveTable
from pipelines.tuning.plots import PAGE, PLOTS
from pipelines.tuning.results import Results, rank_correlation
from pipelines.tuning.space import Dimension, Sweep
from pipelines.tuning.study import Study

SPACE = {"train.lr": Dimension(float=(1e-5, 1e-3), log=True), "train.batch_size": Dimension(choice=(2, 4))}
SWEEP = Sweep("learning <rates>", SPACE, trials=6, evaluations=4, images=80)


@pytest.fixture
def live_table(tmp_path):
    return LiveTable(Study(f"sqlite:///{tmp_path}/optuna.db", "sweep", SWEEP, {"sweep": {"trials": 6}}))


def finish(live_table, quality):
    """Record a trial from begin to end; its val_loss falls as its PSNR rises."""
    trial = live_table.study.ask()
    live_table.trial_started(trial)
    for rung in range(1, 5):
        live_table.trial_validated(trial.number, rung, quality, 40.0)
        live_table.study.record_validation(trial.number, rung, quality, 40.0)
    figures = {"0": {"val_psnr": quality, "val_loss": 1 / quality}}
    live_table.study.complete(trial.number, figures, 80)
    live_table.trial_ended(trial.number)


def test_a_log_says_what_begins_and_how_it_ends(live_table, capfd):
    finish(live_table, 30.25)
    trial = live_table.study.ask()
    live_table.trial_started(trial)
    live_table.study.fail(trial.number, "its loss is nan")
    live_table.trial_ended(trial.number)
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("trial 0: train.lr=")
    assert "trial 0: COMPLETE 30.25; best val_psnr 30.25 (trial 0), 1 of 6 trials done" in lines[1]
    assert "trial 1: FAIL (its loss is nan); best val_psnr 30.25 (trial 0), 2 of 6 trials done" in lines[3]


def test_the_table_shows_those_that_run_and_the_newest(live_table):
    for quality in (20.0, 21.5):
        finish(live_table, quality)
    live_table.trial_started(live_table.study.ask())
    live_table.trial_validated(2, 1, 19.75, 123.0)
    console = Console(width=140)
    with console.capture() as captured:
        console.print(live_table.table())
    table = captured.get()
    assert "RUNNING" in table
    assert "19.75" in table
    assert "1/4" in table
    assert "123" in table
    assert table.count("COMPLETE") == 2
    assert "best val_psnr 21.5 (trial 1), 2 of 6 trials done" in table


def test_the_summary_and_plots_of_a_sweep(live_table, tmp_path):
    for quality in (20.0, 23.0, 21.0, 22.0):
        finish(live_table, quality)
    plan = SimpleNamespace(name="sweep", sweep=SWEEP, base=Config())
    results = Results.of(plan, live_table.study, "")
    results.publish(tmp_path / "out")
    summary = results.summary()
    assert summary["trials"] == {"COMPLETE": 4, "PRUNED": 0, "FAIL": 0}
    assert (summary["best"]["trial"], summary["best"]["val_psnr"]) == (1, 23.0)
    assert summary["best"]["seconds"] == 2.0
    assert summary["rank_correlation"] == pytest.approx(1.0)
    assert summary["steps"] == sum(80 // row["train.batch_size"] for row in results.rows)
    page = (tmp_path / "out" / PAGE).read_text()
    assert "learning &lt;rates&gt;" in page
    assert page.count("Plotly.newPlot(") >= len(PLOTS)
    for name in PLOTS:
        assert (tmp_path / "out" / f"{name}.png").stat().st_size > 5000


def test_the_rank_correlation_of_psnr_and_loss():
    rows = [{"val_psnr": psnr, "val_loss": loss} for psnr, loss in ((20.0, 3.0), (21.0, 2.0), (22.0, 2.5))]
    assert rank_correlation(rows) == pytest.approx(0.5)
    assert rank_correlation(rows[:2]) is None
    assert rank_correlation([{"val_psnr": 20.0, "val_loss": None}] * 5) is None
