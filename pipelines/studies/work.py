"""What a process of the cluster does for a study: train a run, score its model as each row asks, report the results."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoise.config import Config
from denoise.errors import UserError
from denoise.fields import set_and_split
from denoise.files import file_stems, finite_or_null, fitting_name, json_text
from pipelines.studies.plan import CellPlan, Unit
from pipelines.studies.results import Cell, Training, settings

if TYPE_CHECKING:
    from denoise.denoiser import Denoiser
    from pipelines.training.side_by_side import Reporter

STEP, CELL, IMAGES = "step", "cell", "images"  # keys of what is reported
ENDS = ("-noisy.png", "-restored.png", "-clean.png")
SHOWN = 2  # images of each set that are kept of every row, whatever their scores
PEAK = Path("/proc/self/clear_refs"), Path("/proc/self/status")  # Linux: reset the peak of a process, and read it


@dataclass(frozen=True, repr=False)  # Ray may show the text of its arguments, and an address may hold a password
class UnitTask:
    """A unit with the tags of its run in MLflow."""

    unit: Unit
    tags: Mapping[str, object]
    image_seed: int  # images are kept of this seed alone


def do_unit(task: UnitTask, report: "Reporter") -> Mapping[str, Any]:
    """Train a unit's run if it has one, score the model for every cell, and report each cell as it is done.

    Raises:
        UserError: bad input, or training failed for good.
    """
    unit = task.unit
    trained = unit.cells[0].trained
    with tempfile.TemporaryDirectory(prefix="denoise-study-") as folder:
        model = Path(folder) / "model"
        training = _train(task, report, model) if trained else None
        for cell, key in zip(unit.cells, unit.keys, strict=True):
            scores, images = _score(cell, model if trained else None, Path(folder) / f"row-{cell.number}")
            done = Cell(cell.row, cell.seed, settings(cell.config), training, scores, key=key)
            kept = list(images.items()) if cell.seed == task.image_seed else []
            report({CELL: json_text(finite_or_null(asdict(done))), IMAGES: kept})  # Tune would flatten mappings
    return {}


def _train(task: UnitTask, report: "Reporter", model: Path) -> Training:
    """Train the unit's run, write its model to a folder, and return what that took."""
    from pipelines.storage.checkpoints import open_store
    from pipelines.training.inputs import export_model, training_inputs
    from pipelines.training.trial import train_trial

    config, name = task.unit.config, task.unit.name
    _reset_peak_memory()
    train_trial(config, name, task.tags, lambda row: report({STEP: row["step"]}), report.messages)
    report({STEP: config.train.steps})  # a training that another study has ended tells no steps of its own
    peak = _peak_memory_mb()
    export_model(config, open_store(config.ray.storage, name), model)
    inputs = training_inputs(config, name)
    history = _timed_history(config, name, model)
    rates = [row["images_per_second"] for row in history if "images_per_second" in row]
    return Training(
        run=name,
        steps=config.train.steps,
        batch_size=config.train.batch_size,
        images=config.train.steps * config.train.batch_size,
        train_images=_train_images(config, inputs.parts),
        weights=_weights(model),
        seconds=history[-1].get("seconds") if history else None,
        images_per_second=sorted(rates)[len(rates) // 2] if rates else None,
        peak_memory_mb=peak,
        device=device_name(),
        data={"/".join(set_and_split(part.name, part.split)): part.digest for part in inputs.parts},
        code=inputs.versions["code_digest"],
        history=tuple(history),
    )


def _score(cell: CellPlan, model: Path | None, folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the scores of a cell by test set, and PNG files of some images by their path within the cell's folder."""
    from pipelines.evaluate import evaluate_model

    config = cell.config
    noise = config.evaluate.noise or config.noise
    denoiser = _denoiser(config, model)
    results = evaluate_model(config, denoiser, config.data.test, config.evaluate.protocol, noise, folder)
    for result in results:
        if "psnr" not in result:
            raise UserError(
                f"{result['data']} has no clean images: a study compares scores; score on a set that has some."
            )
    scores = {result["data"]: result for result in results}
    return scores, _some_images(scores, folder)


def _denoiser(config: Config, model: Path | None) -> "Denoiser":
    """Return the trained model, or the untrained method, as the row restores with it."""
    from denoise import distributed
    from denoise.denoiser import load_denoiser, untrained_denoiser
    from denoise.noise import parse_noise
    from pipelines.evaluate import as_configured

    device = distributed.device()
    if model is None:
        method, noise = config.method, parse_noise(config.evaluate.noise or config.noise)
        denoiser = untrained_denoiser(method.name, method.fields, config.data.channels, noise, device)
    else:
        denoiser = load_denoiser(model, device)
    return as_configured(denoiser, config.evaluate)


def _some_images(scores: Mapping[str, Any], folder: Path) -> dict[str, bytes]:
    """Return PNG files of the worst, the median, the best and the first images of each set, by SET/NAME-KIND.png."""
    files: dict[str, bytes] = {}
    for data, result in scores.items():
        images = folder / data / result["protocol"] / "images"
        stems = file_stems([image["name"] for image in result["images"]])
        written = [
            image for image in result["images"] if (images / fitting_name(stems[image["name"]], ENDS[0])).is_file()
        ]
        for image in _telling(written):
            names = [fitting_name(stems[image["name"]], end) for end in ENDS]
            files |= {f"{data}/{name}": (images / name).read_bytes() for name in names}
    return files


def _telling(images: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the worst, the median and the best image by PSNR, and the first ones, which all rows show."""
    ranked = sorted((image for image in images if isfinite(image["psnr"])), key=lambda image: image["psnr"])
    chosen = [*(ranked[position] for position in {0, len(ranked) // 2, len(ranked) - 1} if ranked), *images[:SHOWN]]
    return list({image["name"]: image for image in chosen}.values())


def _timed_history(config: Config, name: str, model: Path) -> list[dict[str, float]]:
    """Return the rows of a training's history with the time of each, as far as this host has the run's journal."""
    from denoise.training.checkpoint import read_history
    from pipelines.tracking.journal import Journal
    from pipelines.tracking.lifecycle import journal_folder

    rows = [{key: value for key, value in row.items() if isfinite(value)} for row in read_history(model)]
    points = Journal(journal_folder(config.ray.storage, name)).all_points()
    rates = {point.step: point.value for point in points if point.key == "images_per_second" and point.value > 0}
    seconds = 0.0
    for before, row in pairwise([{"step": 0.0}, *rows]):
        rate = rates.get(int(row["step"]))
        if rate is None:  # another host has it
            return rows
        seconds += (row["step"] - before["step"]) * config.train.batch_size / rate
        row |= {"images_per_second": rate, "seconds": seconds}
    return rows


def _train_images(config: Config, parts: Sequence[Any]) -> int:
    """Return the number of samples of the training sets."""
    from pipelines.training.inputs import open_datasets

    return len(open_datasets(config, parts)["train"])


def _weights(model: Path) -> int:
    """Return the number of parameters of a model's net."""
    from denoise.denoiser import load_denoiser

    return sum(weight.numel() for weight in load_denoiser(model).net.parameters())


def device_name() -> str:
    """Return what this process computes on, in words."""
    import platform

    import torch

    from denoise import distributed

    device = distributed.device()
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{threads} thread{'s' * (threads > 1)} of {_processor() or platform.machine()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _reset_peak_memory() -> None:
    import torch

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.reset_peak_memory_stats()
    try:
        PEAK[0].write_text("5", encoding="ascii")
    except OSError:  # not Linux: the peak is that of the process
        return


def _peak_memory_mb() -> float | None:
    """Return the peak memory since the last reset: of the GPU where one is used, else of the process."""
    import torch

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        lines = PEAK[1].read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), None)
