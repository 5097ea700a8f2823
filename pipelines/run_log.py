"""What rank 0 writes into its MLflow run while it trains: metrics, pictures, the load of the machine."""

import io
import queue
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines.tracking import check_answers, client, first_line, shown

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient

FLUSH_SECONDS = 5.0  # between two writes
SYSTEM_SECONDS = 10.0  # between two samples of the machine's load
BATCH = 1000  # metrics in one request: MLflow's limit


class _Point(NamedTuple):
    key: str
    value: float
    timestamp: int  # milliseconds
    step: int


class _Picture(NamedTuple):
    key: str
    picture: "bytes | np.ndarray[Any, Any]"  # bytes: of a picture file
    timestamp: int
    step: int


class _Request(NamedTuple):
    done: threading.Event
    last: bool


class RunLog:
    """Writes to one MLflow run from a thread of its own, so that a slow or dead MLflow never holds up training.

    What cannot be written is kept and tried again every few seconds; one warning says so. What the run already has
    (the same key at the same step) is not written again, so a resumed run that repeats steps holds nothing twice.
    A kill loses what was not flushed: call ``flush`` before a checkpoint is reported. Make it in the process that
    logs; it cannot be sent to another one.
    """

    def __init__(self, uri: str, run_id: str, system_metrics: bool = True) -> None:
        self._uri, self._run_id, self._wants_system = uri, run_id, system_metrics
        self._api: MlflowClient | None = None
        self._points: list[_Point] = []
        self._pictures: list[_Picture] = []
        self._written: dict[str, set[int]] = {}  # steps that the run has, by metric
        self._written_pictures: set[tuple[str, int]] = set()
        self._monitor: Any = None  # MLflow's SystemMetricsMonitor, untyped
        self._sampled, self._sample_step = 0.0, 0
        self._failing = False
        self._requests: queue.Queue[_Request] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="mlflow-writer", daemon=True)
        self._thread.start()

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep the metrics of a step for the next write; NaN and infinities are allowed."""
        now = int(time.time() * 1000)
        self._points += [_Point(key, float(value), now, step) for key, value in metrics.items()]

    def log_picture(self, key: str, picture: "Path | np.ndarray[Any, Any]", step: int) -> None:
        """Keep a picture for the next write: a file, or an array (H, W, C) of uint8 or of floats in [0, 1]."""
        kept = picture.read_bytes() if isinstance(picture, Path) else picture.copy()  # it may be gone by then
        self._pictures.append(_Picture(key, kept, int(time.time() * 1000), step))

    def flush(self, timeout: float = 10.0) -> bool:
        """Write now and return whether everything has been written, after at most ``timeout`` seconds.

        While MLflow is known not to answer, this does not wait.
        """
        return self._write_all(0.0 if self._failing else timeout, last=False)

    def close(self, timeout: float = 30.0) -> bool:
        """Write what is left and stop; say on standard error what could not be written, and return False then."""
        if self._write_all(timeout, last=True):
            return True
        print(
            f"error: {len(self._points)} metrics and {len(self._pictures)} pictures of run {self._run_id} could not "
            f"be written to MLflow at {shown(self._uri)}; the trained model is not affected.",
            file=sys.stderr,
        )
        return False

    def _write_all(self, timeout: float, last: bool) -> bool:
        request = _Request(threading.Event(), last)
        self._requests.put(request)
        return request.done.wait(timeout) and not self._points and not self._pictures

    def _work(self) -> None:
        last = False
        while not last:
            requests = self._next_requests()
            self._turn()
            for request in requests:
                request.done.set()
            last = any(request.last for request in requests)

    def _next_requests(self) -> list[_Request]:
        """Return all requests there are, waiting for the first one until it is time to write anyway."""
        try:
            requests = [self._requests.get(timeout=FLUSH_SECONDS)]
        except queue.Empty:
            return []
        while not self._requests.empty():
            requests.append(self._requests.get())
        return requests

    def _turn(self) -> None:
        try:
            self._sample()
            api = self._connect()
            self._write_points(api)
            self._write_pictures(api)
        except Exception as error:  # a tracker must never stop training, whatever it raises
            if not self._failing:
                print(
                    f"warning: MLflow at {shown(self._uri)} cannot be written to ({first_line(error)}); training goes "
                    "on, and what it logs is kept and tried again.",
                    file=sys.stderr,
                )
            self._failing = True
        else:
            if self._failing:
                print(f"MLflow at {shown(self._uri)} answers again.", file=sys.stderr)
            self._failing = False

    def _connect(self) -> "MlflowClient":
        if self._api is not None:
            check_answers(self._uri)  # MLflow itself would try for minutes
            return self._api
        api = client(self._uri)
        self._written_pictures = _pictures_of(api, self._run_id)
        if self._wants_system:
            self._start_sampling(api)
        self._api = api
        return api

    def _write_points(self, api: "MlflowClient") -> None:
        from mlflow.entities import Metric

        while self._points:
            batch = self._points[:BATCH]
            for key in {point.key for point in batch} - self._written.keys():
                self._written[key] = {entry.step for entry in api.get_metric_history(self._run_id, key)}
            new = {(point.key, point.step): point for point in reversed(batch)}  # the first value of a step counts
            fresh = [point for (key, step), point in new.items() if step not in self._written[key]]
            # A repeated request does no harm: MLflow takes an equal metric (timestamp included) once.
            api.log_batch(self._run_id, metrics=[Metric(*point) for point in fresh])
            for point in fresh:
                self._written[point.key].add(point.step)
            del self._points[: len(batch)]

    def _write_pictures(self, api: "MlflowClient") -> None:
        from PIL import Image

        while self._pictures:
            key, picture, timestamp, step = self._pictures[0]
            if (key, step) not in self._written_pictures:
                image = Image.open(io.BytesIO(picture)) if isinstance(picture, bytes) else picture
                api.log_image(self._run_id, image, key=key, step=step, timestamp=timestamp)
                self._written_pictures.add((key, step))
            del self._pictures[0]

    def _start_sampling(self, api: "MlflowClient") -> None:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        # Its own thread gives up at the first failed request and is never started: only its probes are used here.
        self._monitor = SystemMetricsMonitor(self._run_id, tracking_uri=self._uri)  # type: ignore[no-untyped-call]
        history = api.get_metric_history(self._run_id, "system/cpu_utilization_percentage")
        self._sample_step = 1 + max((entry.step for entry in history), default=-1)

    def _sample(self) -> None:
        if self._monitor is None or time.monotonic() - self._sampled < SYSTEM_SECONDS:
            return
        self._sampled = time.monotonic()
        self._monitor.collect_metrics()
        load = self._monitor.aggregate_metrics()
        for probe in self._monitor.monitors:
            probe.clear_metrics()
        self.log_metrics(self._sample_step, {f"system/{key}": value for key, value in load.items()})
        self._sample_step += 1


def _pictures_of(api: "MlflowClient", run_id: str) -> set[tuple[str, int]]:
    """Return (key, step) of every picture of a run, from the names that MLflow gives to its files."""
    names = [Path(file.path).name for file in api.list_artifacts(run_id, "images")]
    parts = [name.split("+") for name in names if name.endswith("+compressed.webp")]  # the last file of a picture
    return {(part[0].replace("~", "/"), int(part[2])) for part in parts}
