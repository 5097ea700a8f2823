"""Logging of a run: to the journal at once, and to MLflow soon after.

``MlflowLogger`` appends to the journal, and a thread of it replays the journal into MLflow; for rank 0 a process beside
it does that (sidecar.py). ``JournalReplay``, which ``denoise runs sync`` uses as well, sends what a run lacks, and
nothing twice.
"""

import queue
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from denoise.errors import first_line
from denoise.redaction import without_passwords
from pipelines.tracking.client import UnreachableError, check_reachable, client
from pipelines.tracking.journal import Journal, Point
from pipelines.tracking.journal_logger import JournalLogger
from pipelines.tracking.run_images import images_in_run, send_image
from pipelines.tracking.runs import RunSpec, get_or_create_run

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from pipelines.tracking.system_metrics import SystemMetrics

FLUSH_SECONDS = 5.0  # between two replays of the journal
SYSTEM_SECONDS = 10.0  # between two samples of the system metrics
LATE_SECONDS = 5.0  # that close waits for an MLflow which exceeded a timeout before
BATCH = 1000  # metrics in one request: MLflow's limit
SYSTEM_KEY = "system/cpu_utilization_percentage"  # a metric that is in every sample


class _FlushRequest(NamedTuple):
    done: threading.Event  # set after the replay
    last: bool  # whether the thread ends then


class MlflowLogger(JournalLogger):
    """Logs to one MLflow run from a thread of its own, so that a slow or dead MLflow never holds up training.

    Everything is appended to the journal at once; every few seconds the thread replays the journal into MLflow,
    including what earlier attempts left there. The thread finds or creates the run as soon as MLflow answers. While
    MLflow does not answer, one warning says so, nothing waits, and only the journal grows. Create the logger in the
    process that logs; it cannot be pickled.
    """

    def __init__(
        self,
        spec: RunSpec,
        journal: Path,
        system_metrics: bool = True,
    ) -> None:
        """Start the thread.

        Args:
            spec: definition of the run, with its owner, which may be a process on another machine.
            journal: folder of this run's journal, on the local disk.
            system_metrics: whether to log the system metrics of this machine.

        Raises:
            UserError: the journal cannot be written.
        """
        super().__init__(spec, journal)
        self._down_until = 0.0  # of an injected outage, on the clock of time.monotonic
        self._replay: JournalReplay | None = None
        self._wants_system = system_metrics
        self._system_metrics: SystemMetrics | None = None
        self._last_sample, self._sample_step = 0.0, 0
        self._failing = self._late = False
        self._requests: queue.Queue[_FlushRequest] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="mlflow-logger", daemon=True)
        self._thread.start()

    def inject_outage(self, seconds: float) -> None:
        """Let MLflow count as unreachable for some seconds from now on."""
        self._down_until = time.monotonic() + seconds

    def flush(self, timeout: float = 10.0) -> bool:
        """Replay now, wait at most ``timeout`` seconds, and return whether MLflow has everything.

        While MLflow is known not to answer, this does not wait.
        """
        seconds = 0.0 if self._failing or self._late else timeout
        return self._request_replay(seconds, last=False) and not self._lost_entries

    def close(self, timeout: float = 30.0) -> bool:
        """Replay what is left, stop the thread, and return whether MLflow has everything; if not, print what to do.

        An MLflow that exceeded a timeout before gets a few seconds only.
        """
        if self._request_replay(min(timeout, LATE_SECONDS) if self._late else timeout, last=True):
            return not self._lost_entries  # of which a warning has been printed
        print(
            f"warning: MLflow at {without_passwords(self._spec.uri)} lacks something of run {self._spec.name}; "
            f"it is kept in {self._journal.folder}, and `denoise runs sync {self._spec.name}` sends it.",
            file=sys.stderr,
        )
        return False

    def _request_replay(self, timeout: float, last: bool) -> bool:
        request = _FlushRequest(threading.Event(), last)
        self._requests.put(request)
        self._late = not request.done.wait(timeout)
        return not (self._late or self._failing)

    def _run(self) -> None:
        last = False
        while not last:
            requests = self._next_requests()
            self._try_replay()
            self._late = False
            for request in requests:
                request.done.set()
            last = any(request.last for request in requests)
            if self._wants_system and not last:
                self._log_system_metrics()

    def _next_requests(self) -> list[_FlushRequest]:
        """Return all pending requests; wait for the first one until the next regular replay is due."""
        try:
            requests = [self._requests.get(timeout=FLUSH_SECONDS)]
        except queue.Empty:
            return []
        while not self._requests.empty():
            requests.append(self._requests.get())
        return requests

    def _try_replay(self) -> None:
        """Replay the journal; warn when MLflow stops answering, and say when it answers again."""
        uri = without_passwords(self._spec.uri)
        try:
            self._send_journal()
        except Exception as error:  # a tracker must never stop training, whatever it raises
            self._replay = None  # a restarted server may hold less than the one before: look up again what it has
            if not self._failing:
                print(
                    f"warning: MLflow at {uri} cannot be written to ({first_line(error)}); training goes on, and what "
                    f"it logs is kept in {self._journal.folder} and sent later.",
                    file=sys.stderr,
                )
            self._failing = True
        else:
            if self._failing:
                print(f"MLflow at {uri} answers again.", file=sys.stderr)
            self._failing = False

    def _send_journal(self) -> None:
        if time.monotonic() < self._down_until:
            raise UnreachableError("outage injected by --inject tracker-down")
        if self._replay is None:
            self._replay = self._connect()
        else:
            check_reachable(self._spec.uri)  # MLflow's client itself would retry for minutes
        self._replay.send()

    def _connect(self) -> "JournalReplay":
        with self._journal.run_lock():
            run_id = get_or_create_run(self._spec, as_owner=False)
        replay = JournalReplay(client(self._spec.uri), run_id, self._journal)
        if self._wants_system:  # an earlier attempt may have run on another machine
            self._sample_step = max(self._sample_step, 1 + replay.last_step(SYSTEM_KEY))
        return replay

    def _log_system_metrics(self) -> None:
        if time.monotonic() - self._last_sample < SYSTEM_SECONDS:
            return
        self._last_sample = time.monotonic()
        try:
            metrics = self._sample_system()  # also sets the step of the first sample
            self.log_metrics(self._sample_step, metrics)
            self._sample_step += 1
        except Exception as error:  # whatever a monitor raises
            print(f"warning: system metrics are not logged ({first_line(error)}).", file=sys.stderr)
            self._wants_system = False

    def _sample_system(self) -> dict[str, float]:
        """Sample the system metrics; the first sample continues the steps of earlier attempts in the journal."""
        if self._system_metrics is None:
            from pipelines.tracking.system_metrics import SystemMetrics

            self._system_metrics = SystemMetrics()
            steps = (point.step for point in self._journal.all_points() if point.key == SYSTEM_KEY)
            self._sample_step = max(self._sample_step, 1 + max(steps, default=-1))
        return self._system_metrics.sample()


class JournalReplay:
    """Sends the entries of a journal to its MLflow run, and continues from there when the journal has grown.

    What the run already has (the same key at the same step) is not sent again, so a resumed run that repeats
    steps holds nothing twice; the first value counts. What is not sent yet is in the journal, not in memory. Any
    call may raise MLflow's exceptions, and can be repeated.
    """

    def __init__(self, api: "MlflowClient", run_id: str, journal: Journal, dry_run: bool = False) -> None:
        """Look up what the run has; with ``dry_run``, ``send`` counts what it lacks and sends nothing."""
        self._api, self._run_id, self._journal, self._dry_run = api, run_id, journal, dry_run
        self._position = 0  # in the journal's metrics.jsonl, in bytes
        self._known_steps: dict[str, set[int]] = {}  # steps that the run has, by metric
        self._known_images = images_in_run(api, run_id, journal.images())  # (key, step)
        self.metrics = self.images = 0  # sent, or counted

    def send(self) -> None:
        """Send all that is in the journal and not in the run."""
        while self._send_next_points():
            pass
        self._send_images()

    def last_step(self, key: str) -> int:
        """Return the last step at which the run has a value of a metric, -1 if it has none."""
        return max((entry.step for entry in self._api.get_metric_history(self._run_id, key)), default=-1)

    def _send_next_points(self) -> bool:
        """Send the next values and return whether there were any."""
        points, position = self._journal.points(self._position, BATCH)
        for key in {point.key for point in points} - self._known_steps.keys():
            self._known_steps[key] = {entry.step for entry in self._api.get_metric_history(self._run_id, key)}
        first = {(point.key, point.step): point for point in reversed(points)}  # the first value of a step counts
        new_points = [point for (key, step), point in first.items() if step not in self._known_steps[key]]
        for start in range(0, len(new_points), BATCH):
            self._send_points(new_points[start : start + BATCH])
        has_advanced = position != self._position
        self._position = position
        return has_advanced

    def _send_points(self, points: list[Point]) -> None:
        from mlflow.entities import Metric

        if not self._dry_run:
            # A repeated request is harmless: MLflow stores an equal metric (timestamp included) once.
            self._api.log_batch(self._run_id, metrics=[Metric(*point) for point in points])
        for point in points:
            self._known_steps[point.key].add(point.step)
        self.metrics += len(points)

    def _send_images(self) -> None:
        for image in self._journal.images():
            if (image.key, image.step) in self._known_images:
                continue
            if self._dry_run or send_image(self._api, self._run_id, image):
                self.images += 1
            self._known_images.add((image.key, image.step))
