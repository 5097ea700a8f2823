"""The images of an MLflow run: one file each, under a name that says what it is and that a second attempt repeats."""

import io
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from denoise.errors import first_line
from pipelines.tracking.journal import LoggedImage

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from PIL.Image import Image

FOLDER = "images"  # among a run's artifacts
EARLIER_NAME = re.compile(
    r"(.+)\+step\+(-?\d+)\+timestamp\+.*\+compressed\.webp"
)  # the last file of an image until 0.1


def image_name(key: str, step: int) -> str:
    """Return the name of an image's file: ``validation-step-000500.png``."""
    return f"{key.replace('/', '~')}-step-{step:06d}.png"


def send_image(api: "MlflowClient", run_id: str, logged: LoggedImage) -> bool:
    """Send an image, and return whether it was sent; one that cannot be read is skipped with a warning.

    MLflow's log_image would store it twice, under names of a hundred characters.
    """
    try:
        data = _encode(logged.file)
    except (OSError, ValueError, TypeError) as error:  # the other images are still sent
        print(f"warning: {logged.file} cannot be logged ({first_line(error)}).", file=sys.stderr)
        return False
    with tempfile.TemporaryDirectory() as work:
        file = Path(work) / image_name(logged.key, logged.step)
        file.write_bytes(data)
        api.log_artifact(run_id, str(file), FOLDER)
    return True


def images_in_run(api: "MlflowClient", run_id: str, images: Sequence[LoggedImage]) -> set[tuple[str, int]]:
    """Return (key, step) of those images that a run has.

    Images are sent in order, so that a kill leaves at most the last one incomplete; it is told by its size.

    Args:
        api: MLflow's client.
        run_id: the run.
        images: all images of its journal, in order.
    """
    sizes = {Path(file.path).name: file.file_size for file in api.list_artifacts(run_id, FOLDER)}
    earlier = {
        (match[1].replace("~", "/"), int(match[2])) for match in map(EARLIER_NAME.fullmatch, sizes) if match is not None
    }
    first: dict[str, LoggedImage] = {}
    for image in images:
        first.setdefault(image_name(image.key, image.step), image)  # of a repeated step the first is sent
    present = [name for name in first if name in sizes]
    if present and not _is_complete(first[present[-1]], sizes[present[-1]]):
        present.pop()
    return earlier | {(first[name].key, first[name].step) for name in present}


def _is_complete(image: LoggedImage, size: int | None) -> bool:
    try:
        return size is None or size == len(_encode(image.file))
    except (OSError, ValueError, TypeError):
        return True


def _encode(file: Path) -> bytes:
    """Return an image of the journal as PNG."""
    data = io.BytesIO()
    _read_image(file).save(data, format="PNG")
    return data.getvalue()


def _read_image(file: Path) -> "Image":
    import numpy as np
    from mlflow.tracking.multimedia import convert_to_pil_image
    from PIL import Image

    if file.suffix == ".npy":
        image: Image.Image = convert_to_pil_image(np.load(file))
        return image
    with Image.open(file) as opened:
        return opened.copy()
