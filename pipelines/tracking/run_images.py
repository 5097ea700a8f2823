"""The images of an MLflow run: sent under names that a second attempt repeats, and found again by them."""

import sys
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from denoise.errors import first_line
from pipelines.tracking.journal import LoggedImage

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from PIL.Image import Image


def send_image(api: "MlflowClient", run_id: str, logged: LoggedImage) -> bool:
    """Send an image as MLflow's log_image does, but under a name that is the same at a second attempt.

    log_image uploads two files under a random name: if the server died between them, it would end up with the image
    twice. Returns whether the image was sent; one that cannot be read is skipped with a warning.
    """
    from mlflow.tracking.multimedia import compress_image_size

    stem = f"{logged.key.replace('/', '~')}+step+{logged.step}+timestamp+{logged.timestamp}"
    stem = f"{stem}+{uuid.uuid5(uuid.NAMESPACE_URL, stem)}"
    with tempfile.TemporaryDirectory() as work:
        full, thumbnail = Path(work) / f"{stem}.png", Path(work) / f"{stem}+compressed.webp"
        try:
            image = _read_image(logged.file)
            image.save(full)
            compress_image_size(image).save(thumbnail)
        except (OSError, ValueError, TypeError) as error:  # the other images are still sent
            print(f"warning: {logged.file} cannot be logged ({first_line(error)}).", file=sys.stderr)
            return False
        api.log_artifact(run_id, str(full), "images")
        api.log_artifact(run_id, str(thumbnail), "images")
    api.set_tag(run_id, "mlflow.loggedImages", "True")
    return True


def _read_image(file: Path) -> "Image":
    import numpy as np
    from mlflow.tracking.multimedia import convert_to_pil_image
    from PIL import Image

    if file.suffix == ".npy":
        image: Image.Image = convert_to_pil_image(np.load(file))
        return image
    with Image.open(file) as opened:
        return opened.copy()


def images_in_run(api: "MlflowClient", run_id: str) -> set[tuple[str, int]]:
    """Return (key, step) of every image of a run, from the names of its files in MLflow."""
    names = [Path(file.path).name for file in api.list_artifacts(run_id, "images")]
    parts = [name.split("+") for name in names if name.endswith("+compressed.webp")]  # uploaded last
    return {(part[0].replace("~", "/"), int(part[2])) for part in parts}
