"""What the report of a study says, as texts and tables; the page and the Markdown file both show it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from denoise.config import flatten
from pipelines.studies.hold import Verdict, verdicts
from pipelines.studies.report.cost import cost_table
from pipelines.studies.report.differences import difference_table
from pipelines.studies.report.levels import sigma_table
from pipelines.studies.report.rows import definition_rows, sources, trainings
from pipelines.studies.report.scores import score_table, set_table
from pipelines.studies.report.tables import Table
from pipelines.studies.results import StudyRun

SCORE_NOTES = (
    "PSNR in dB: the mean over the images of a test set, then over the seeds, with their standard deviation (± where "
    "there are several). In brackets behind a published figure: ours minus the published one, where both are of the "
    "same test sets.",
    "Input PSNR, SSIM and bias are means over the test sets; the bias is the mean of restored minus clean, in grey "
    "levels of 255. SSIM is that of Gaussian windows (Wang et al. 2004), and beside it that of uniform 7x7 windows "
    "with a data range of 2, which some publications report.",
)
DIFFERENCE_NOTE = (
    "Differences of the mean PSNR, paired by seed: both rows of a pair share the seed and the test images. Not "
    "resolved: the 95 % interval (Student's t) holds 0, so these results do not say which is better."
)
IMAGE_NOTE = (
    "Where there is one seed, the pairs are the images of all test sets alike: the interval says how sure the "
    "difference between these two trained models is, and leaves out the noise of training, which another seed would "
    "show."
)
COST_NOTE = (
    "Means over the seeds. Seconds are of training with validation, of all attempts together; images a second is the "
    "median over the log; memory is of the process that trained, on a GPU that of the GPU."
)
SIGMA_NOTE = (
    "Levels of Gaussian noise in 255ths, others in the noise's own unit; one pair an image, its mean over seeds and "
    "repeats. Spearman's rank correlation needs levels that vary."
)


@dataclass(frozen=True)
class Content:
    """The report of a study without its figures."""

    title: str
    source: str
    warnings: tuple[str, ...]  # what a reader must know before the figures
    facts: tuple[tuple[str, str], ...]  # label and text: budget, date, device, commit
    command: str
    note: str  # known defects of the original
    sources: tuple[tuple[str, str], ...]  # column of published figures, and what it is
    scores: Table
    sets: Table | None
    row_notes: tuple[tuple[str, str], ...]
    failures: tuple[tuple[str, str], ...]  # row with seed, and why
    verdicts: tuple[Verdict, ...]
    differences: Table | None
    cost: Table
    shared: tuple[tuple[str, str], ...]  # what all rows took alike
    sigma: Table | None


def content(run: StudyRun) -> Content:
    """Return what the report of a study says, as far as it has been run."""
    definition = run.definition
    cost, shared = cost_table(run)
    return Content(
        title=_text(definition.get("title")) or run.name,
        source=_text(definition.get("source")),
        warnings=tuple(_warnings(run)),
        facts=tuple(_facts(run)),
        command=run.command,
        note=_text(definition.get("note")),
        sources=tuple((label, _text(what)) for label, what in sources(run).items()),
        scores=score_table(run),
        sets=set_table(run),
        row_notes=tuple((name, _text(row["note"])) for name, row in definition_rows(run).items() if row.get("note")),
        failures=tuple((f"{cell.row}, seed {cell.seed}", cell.failure) for cell in run.cells if cell.failure),
        verdicts=tuple(verdicts(run)),
        differences=difference_table(run),
        cost=cost,
        shared=tuple(shared),
        sigma=sigma_table(run),
    )


def _text(value: object) -> str:
    return " ".join(str(value or "").split())


def _warnings(run: StudyRun) -> list[str]:
    """Return sentences on what makes the figures incomparable with the published ones, and on what is missing."""
    sentences = []
    if run.stand_in:
        sentences.append(f"Stand-in images were used: {_text(run.stand_in)}")
    if run.minutes is not None:
        sentences.append(
            f"Every row was trained for the same time, {run.minutes:g} minutes, in place of the budget's steps."
        )
    wanted, failed = len(run.rows) * len(run.seeds), sum(bool(cell.failure) for cell in run.cells)
    missing = wanted - len(run.cells)
    parts = [f"failed: {failed}"] * bool(failed) + [f"not chosen, or not run yet: {missing}"] * bool(missing)
    if parts:
        sentences.append(f"Of {wanted} results, {'; '.join(parts)}.")
    return sentences


def _facts(run: StudyRun) -> list[tuple[str, str]]:
    devices = dict.fromkeys(training.device for training in trainings(run.cells))
    facts = [
        ("Study", run.name),
        ("Budget", _budget(run)),
        ("Seeds", ", ".join(map(str, run.seeds))),
        ("Date", run.dates),
        ("Device", "; ".join(device for device in devices if device)),
        ("Commit", run.commits),
    ]
    return [(label, text) for label, text in facts if text]


def _budget(run: StudyRun) -> str:
    """Return the budget's name with what it sets and its note."""
    budget: Mapping[str, Any] = run.definition.get("budgets", {}).get(run.budget, {})
    settings = ", ".join(f"{key}={_setting(value)}" for key, value in flatten(budget.get("config", {})).items())
    parts = [part for part in (settings, _text(budget.get("note"))) if part]
    return f"{run.budget}: {'; '.join(parts)}" if parts else run.budget


def _setting(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
