"""What the rows of a study took: steps, time, memory, and the versions that decide their results."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from pipelines.studies.report.rows import cells_by_row, sets_of
from pipelines.studies.report.tables import NONE, Column, Table
from pipelines.studies.results import Cell, StudyRun, Training
from pipelines.studies.statistics import mean_and_deviation

DIGEST = 8  # hex digits that are shown of a digest


def cost_table(run: StudyRun) -> tuple[Table, list[tuple[str, str]]]:
    """Return the table of what differs between the rows, and as (label, text) what they share."""
    lines = []
    for row, cells in cells_by_row(run).items():
        numbers = [_mean(cells, figure, digits) for figure, digits in FIGURES.values()]
        lines.append((row, *numbers, *(_joined(cells, texts) for texts in SETTINGS.values())))
    columns = (
        Column("row", number=False),
        *(Column(heading) for heading in FIGURES),
        *(Column(heading, number=False) for heading in SETTINGS),
    )
    return Table(columns, tuple(lines)).without_shared()


def _mean(cells: Sequence[Cell], figure: Callable[[Cell], float | None], digits: int) -> str:
    numbers = [number for number in map(figure, cells) if number is not None]
    return f"{mean_and_deviation(numbers)[0]:,.{digits}f}" if numbers else NONE


def _joined(cells: Sequence[Cell], texts: Callable[[Cell], Iterable[str]]) -> str:
    """Return the different texts of the cells."""
    return ", ".join(dict.fromkeys(text for cell in cells for text in texts(cell) if text)) or NONE


def _trained(figure: Callable[[Training], float | None]) -> Callable[[Cell], float | None]:
    """Return a figure of a cell's training, None where it has none."""
    return lambda cell: None if cell.training is None else figure(cell.training)


def _seconds_per_epoch(training: Training) -> float | None:
    return None if training.seconds is None or not training.epochs else training.seconds / training.epochs


def _scoring(cell: Cell) -> float | None:
    """Return the seconds that scoring took an image, with all its repeats."""
    images = sum(len(scores.get("images", ())) for scores in cell.scores.values())
    seconds = [scores["seconds"] for scores in cell.scores.values() if scores.get("seconds") is not None]
    return sum(seconds) / images if seconds and images else None


def _scored(key: str) -> Callable[[Cell], Iterable[str]]:
    """Return the settings that a cell's evaluations record under a key."""
    return lambda cell: [_text(scores[key]) for scores in cell.scores.values() if scores.get(key) is not None]


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _tiles(cell: Cell) -> list[str]:
    tiles = [(scores.get("tile"), scores.get("overlap")) for scores in cell.scores.values()]
    return ["whole image" if side is None else f"{side}, overlap {overlap}" for side, overlap in tiles]


def _split(data: str) -> str:
    """Return SET/SPLIT of a test set, which names its split where that is another than test."""
    return data if "/" in data else f"{data}/test"


def _images(cell: Cell) -> list[str]:
    """Return how many images of each test set a cell was scored on."""
    scored = [(name, cell.scores[name]) for name in sets_of(cell)]
    counts = [(name, len(scores.get("images", ())), scores.get("images_of")) for name, scores in scored]
    return [f"{name} {count}" + f" of {whole}" * (whole not in (None, count)) for name, count, whole in counts]


def _training_data(cell: Cell) -> list[str]:
    """Return the data that a cell was trained and validated on, each with the beginning of its version."""
    return _versions(cell.training.data) if cell.training else []


def _test_data(cell: Cell) -> list[str]:
    return _versions({_split(name): cell.scores[name].get("data_digest") for name in sets_of(cell)})


def _versions(digests: Mapping[str, str | None]) -> list[str]:
    return [f"{name} {version[:DIGEST]}" for name, version in digests.items() if version]


def _assumed(cell: Cell) -> list[str]:
    levels = [scores.get("assumed_level") for scores in cell.scores.values()]
    return ["the true one" if level in (None, 1) else f"{level:g} times the true one" for level in levels]


# Heading -> figure of a cell, the mean over the seeds, and the digits to show.
FIGURES: dict[str, tuple[Callable[[Cell], float | None], int]] = {
    "steps": (_trained(lambda training: training.steps), 0),
    "batch": (_trained(lambda training: training.batch_size), 0),
    "images seen": (_trained(lambda training: training.images), 0),
    "epochs": (_trained(lambda training: training.epochs), 2),
    "seconds": (_trained(lambda training: training.seconds), 0),
    "seconds an epoch": (_trained(_seconds_per_epoch), 1),
    "images a second": (_trained(lambda training: training.images_per_second), 1),
    "weights": (_trained(lambda training: training.weights), 0),
    "peak memory, MB": (_trained(lambda training: training.peak_memory_mb), 0),
    "scoring, seconds an image": (_scoring, 2),
}
# Heading -> texts of a cell.
SETTINGS: dict[str, Callable[[Cell], Iterable[str]]] = {
    "method": _scored("method"),
    "noise at test": _scored("noise"),
    "protocol": _scored("protocol"),
    "passes": _scored("passes"),
    "orientations averaged": _scored("averaged_over"),
    "tile": _tiles,
    "assumed noise level": _assumed,
    "precision": _scored("precision"),
    "images scored": _images,
    "training and validation data": _training_data,
    "test data": _test_data,
    "code": lambda cell: [cell.training.code[:DIGEST]] if cell.training else [],
    "device": lambda cell: [cell.training.device] if cell.training else [],
    "run": lambda cell: [cell.training.run] if cell.training else [],
}
