"""Inputs of the report: scores that evaluation wrote, and configurations and logs that training wrote."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from denoise.config import flatten
from denoise.documents import parse_json
from denoise.errors import UserError, nearest
from denoise.files import file_stems, fitting_name
from denoise.redaction import redacted

FIGURES = ("noisy_psnr", "psnr", "noisy_ssim", "ssim")
LABELS = ("method", "noise", "data", "protocol")
FOLDERS = ("images", "pictures")  # of the restored images; the latter in version 0.1
KINDS = ("noisy", "restored", "clean")


@dataclass(frozen=True)
class Scores:
    """PSNR in dB and SSIM of the noisy and the restored image; of one image, or the mean over a set."""

    name: str
    stem: str  # of the files that evaluation has written of the image
    noisy_psnr: float
    psnr: float
    noisy_ssim: float
    ssim: float

    @property
    def gain(self) -> float:
        """PSNR restored minus PSNR noisy, in dB."""
        return 0.0 if self.psnr == self.noisy_psnr else self.psnr - self.noisy_psnr  # both may be infinite


@dataclass(frozen=True)
class Evaluation:
    """One scores.json: a method on a data set under a protocol."""

    file: Path
    method: str
    noise: str
    data: str
    protocol: str
    mean: Scores
    images: tuple[Scores, ...]

    def image(self, name: str) -> Scores | None:
        """Return the scores of an image, by its name or stem, or None where this evaluation did not score it."""
        return next((scores for scores in self.images if name in (scores.name, scores.stem)), None)

    def files(self, stem: str) -> dict[str, Path] | None:
        """Return the image's files by kind (noisy, restored, clean), or None unless all three were written."""
        folder = next((path for name in FOLDERS if (path := self.file.parent / name).is_dir()), self.file.parent)
        # The names are compared with the folder's listing, so that no name can point outside it.
        names = {file.name for file in folder.iterdir()}
        files = {kind: fitting_name(stem, f"-{kind}.png") for kind in KINDS}
        if not names.issuperset(files.values()):
            return None
        return {kind: folder / name for kind, name in files.items()}


@dataclass(frozen=True)
class Training:
    """One model folder: its configuration as dotted keys, and the metrics that training logged by step."""

    name: str
    folder: Path
    settings: Mapping[str, Any]
    log: tuple[Mapping[str, float], ...]

    def series(self, key: str) -> list[tuple[float, float]]:
        """Return (step, value) in the order of the steps; where a resumed run logged a step twice, the last counts."""
        values = {row["step"]: row[key] for row in self.log if math.isfinite(row.get(key, math.nan))}
        return sorted(values.items())


def read_evaluations(paths: Iterable[Path]) -> list[Evaluation]:
    """Return the evaluations of scores.json files, or of the folders that hold one.

    Raises:
        UserError: none given, one missing or malformed, or two of the same method, noise, data and protocol.
    """
    evaluations = [_read_evaluation(path) for path in paths]
    if not evaluations:
        raise UserError("No scores were given, so there is nothing to report; run `denoise evaluate` first.")
    seen: dict[tuple[str, ...], Path] = {}
    for evaluation in evaluations:
        key = (evaluation.method, evaluation.noise, evaluation.data, evaluation.protocol)
        if key in seen:
            raise UserError(f"{seen[key]} and {evaluation.file} both score {' '.join(key)}; give one of them.")
        seen[key] = evaluation.file
    return evaluations


def read_trainings(folders: Sequence[Path]) -> list[Training]:
    """Return the trainings of model folders, named by method, or by folder where a method was trained twice."""
    trainings = [_read_training(Path(folder)) for folder in folders]
    counts = Counter(training.name for training in trainings)
    return [
        replace(training, name=training.folder.name) if counts[training.name] > 1 else training
        for training in trainings
    ]


def _read_evaluation(path: Path) -> Evaluation:
    file = Path(path) / "scores.json" if Path(path).is_dir() else Path(path)
    document = _read_json(file, "scores", "run `denoise evaluate` first")
    for label in LABELS:
        if not isinstance(document.get(label), str):
            raise UserError(f"{file} names no {label}, so it is no scores file; write it with `denoise evaluate`.")
    if "estimate" in document and "psnr" not in document:
        raise UserError(
            f"{file} holds an estimate, of a set without clean images, and no scores to compare; leave that set out, "
            "and see residual.html beside the file."
        )
    entries = document.get("images", document.get("pictures", []))  # the latter in files of version 0.1
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "name" in entry for entry in entries):
        raise UserError(f"{file} should list its images with a name each; write it with `denoise evaluate`.")
    names = [str(entry["name"]) for entry in entries]
    stems = file_stems(names)
    return Evaluation(
        file=file,
        **{label: document[label] for label in LABELS},
        mean=_scores(file, "mean", "", document),
        images=tuple(_scores(file, name, stems[name], entry) for name, entry in zip(names, entries, strict=True)),
    )


def _scores(file: Path, name: str, stem: str, entry: Mapping[str, Any]) -> Scores:
    figures: dict[str, float] = {}
    for figure in FIGURES:
        value = entry.get(figure)
        if value is None and figure in entry and figure.endswith("psnr"):  # of equal images: JSON has no infinity
            value = math.inf
        if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value):
            problem = "is missing" if value is None else f"is {value}"
            raise UserError(f"{file}: {figure} of {name} {problem}, not a number; train and evaluate the method again.")
        figures[figure] = float(value)
    return Scores(name, stem, **figures)


def _read_training(folder: Path) -> Training:
    document = _read_json(folder / "model.json", "a model", "give the output folder of `denoise train`")
    # Models of version 0.1.0 may hold the addresses of services as they were given.
    settings = redacted(flatten(document["config"] if isinstance(document.get("config"), dict) else document))
    method = settings.get("method")
    return Training(method if isinstance(method, str) else folder.name, folder, settings, _read_log(folder))


def _read_log(folder: Path) -> tuple[Mapping[str, float], ...]:
    file = folder / "metrics.jsonl"
    if not file.is_file():
        raise UserError(
            f"{folder} holds no metrics.jsonl, the log that `denoise train` writes; train the method again."
        )
    lines = file.read_bytes().splitlines()
    log = []
    for number, text in enumerate(lines, 1):
        try:
            row = parse_json(text)
        except ValueError:
            if number == len(lines):  # training was stopped while it wrote
                break
            raise UserError(f"Line {number} of {file} is not JSON; train the method again.") from None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int | float):
            raise UserError(f"Line {number} of {file} names no step; train the method again.")
        try:
            log.append({key: float(value) for key, value in row.items() if isinstance(value, int | float)})
        except OverflowError:
            raise UserError(f"Line {number} of {file} holds a number without end; train the method again.") from None
    return tuple(log)


def _read_json(file: Path, content: str, remedy: str) -> dict[str, Any]:
    """Return the JSON object in a file; the error says what it should hold and what to do about it."""
    try:
        document = parse_json(file.read_bytes())
    except FileNotFoundError:
        missing = file if file.parent.is_dir() else file.parent
        hint = "" if missing.suffix else nearest(missing.name, [other.name for other in missing.parent.glob("*")])
        raise UserError(f"{file} does not exist{hint}; it should hold {content}: {remedy}.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} should hold {content} as JSON, but cannot be read: {error}.") from None
    if not isinstance(document, dict):
        raise UserError(f"{file} should hold {content}, but it holds a {type(document).__name__}.")
    return document
