"""From a journal to MLflow: what the run lacks, and nothing twice."""

import sys
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from denoise.errors import first_line
from pipelines.tracking.journal import Journal, LoggedImage, Point

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from PIL.Image import Image

BATCH = 1000  # metrics in one request: MLflow's limit


class JournalReplay:
    """Writes what a journal holds into its MLflow run, and goes on from there when the journal has grown.

    What the run already has (the same key at the same step) is not written again, so a resumed run that repeats
    steps holds nothing twice; the first value counts. What is not written yet is in the journal, not in memory.
    Any call may raise what MLflow raises, and can be made again.
    """

    def __init__(self, api: "MlflowClient", run_id: str, journal: Journal, dry: bool = False) -> None:
        """Look up what the run has; ``dry`` means to count what it lacks, and to write nothing."""
        self._api, self._run_id, self._journal, self._dry = api, run_id, journal, dry
        self._position = 0  # in the journal's metrics
        self._written: dict[str, set[int]] = {}  # steps that the run has, by metric
        self._written_images = _images_of(api, run_id)
        self.metrics = self.images = 0  # written, or counted

    def write(self) -> None:
        """Write all that is in the journal and not in the run."""
        while self._write_points():
            pass
        self._write_images()

    def last_step(self, key: str) -> int:
        """Return the last step at which the run has a metric, -1 where it has none."""
        return max((entry.step for entry in self._api.get_metric_history(self._run_id, key)), default=-1)

    def _write_points(self) -> bool:
        """Write the next values and return whether there were any."""
        points, position = self._journal.points(self._position, BATCH)
        for key in {point.key for point in points} - self._written.keys():
            self._written[key] = {entry.step for entry in self._api.get_metric_history(self._run_id, key)}
        first = {(point.key, point.step): point for point in reversed(points)}  # the first value of a step counts
        fresh = [point for (key, step), point in first.items() if step not in self._written[key]]
        for start in range(0, len(fresh), BATCH):
            self._send(fresh[start : start + BATCH])
        moved = position != self._position
        self._position = position
        return moved

    def _send(self, points: list[Point]) -> None:
        from mlflow.entities import Metric

        if not self._dry:
            # A repeated request does no harm: MLflow takes an equal metric (timestamp included) once.
            self._api.log_batch(self._run_id, metrics=[Metric(*point) for point in points])
        for point in points:
            self._written[point.key].add(point.step)
        self.metrics += len(points)

    def _write_images(self) -> None:
        for image in self._journal.images():
            if (image.key, image.step) in self._written_images:
                continue
            if self._dry or _log_image(self._api, self._run_id, image):
                self.images += 1
            self._written_images.add((image.key, image.step))


def _log_image(api: "MlflowClient", run_id: str, logged: LoggedImage) -> bool:
    """Log an image as MLflow's log_image does, but under a name that a second try gives again.

    log_image uploads two files under a random name: a server that dies between them would keep an image twice.
    """
    from mlflow.tracking.multimedia import compress_image_size

    place = f"{logged.key.replace('/', '~')}+step+{logged.step}+timestamp+{logged.timestamp}"
    stem = f"{place}+{uuid.uuid5(uuid.NAMESPACE_URL, place)}"
    with tempfile.TemporaryDirectory() as work:
        whole, small = Path(work) / f"{stem}.png", Path(work) / f"{stem}+compressed.webp"
        try:
            image = _read(logged.file)
            image.save(whole)
            compress_image_size(image).save(small)
        except (OSError, ValueError, TypeError) as error:  # it must not keep the others from being written
            print(f"warning: {logged.file} cannot be logged ({first_line(error)}).", file=sys.stderr)
            return False
        api.log_artifact(run_id, str(whole), "images")
        api.log_artifact(run_id, str(small), "images")
    api.set_tag(run_id, "mlflow.loggedImages", "True")
    return True


def _read(file: Path) -> "Image":
    import numpy as np
    from mlflow.tracking.multimedia import convert_to_pil_image
    from PIL import Image

    if file.suffix == ".npy":
        image: Image.Image = convert_to_pil_image(np.load(file))
        return image
    with Image.open(file) as opened:
        return opened.copy()


def _images_of(api: "MlflowClient", run_id: str) -> set[tuple[str, int]]:
    """Return (key, step) of every image of a run, from the names that MLflow gives to its files."""
    names = [Path(file.path).name for file in api.list_artifacts(run_id, "images")]
    parts = [name.split("+") for name in names if name.endswith("+compressed.webp")]  # the last file of an image
    return {(part[0].replace("~", "/"), int(part[2])) for part in parts}
