"""What rank 0 writes into its MLflow run while it trains: metrics, images, the load of the machine."""

import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from denoise.errors import first_line
from pipelines.tracking.client import UnreachableError, check_answers, client, without_password
from pipelines.tracking.journal import Journal
from pipelines.tracking.runs import RunSpec, get_or_create_run

if TYPE_CHECKING:
    import numpy as np

    from pipelines.tracking.replay import JournalReplay
    from pipelines.tracking.system_metrics import SystemMetrics

FLUSH_SECONDS = 5.0  # between two writes
SYSTEM_SECONDS = 10.0  # between two samples of the machine's load
LATE_SECONDS = 5.0  # that the end of a run waits for an MLflow that has kept it waiting before
SYSTEM_KEY = "system/cpu_utilization_percentage"  # in every sample


class _Request(NamedTuple):
    done: threading.Event
    last: bool


class MlflowLogger:
    """Writes to one MLflow run from a thread of its own, so that a slow or dead MLflow never holds up training.

    Everything goes to the journal first, at once, and from there to MLflow, every few seconds. The thread opens the
    run itself as soon as MLflow answers, and writes what earlier attempts left in the journal. While MLflow does not
    answer, one warning says so, nothing waits, and nothing but the journal grows. Make it in the process that logs;
    it cannot be sent to another one.
    """

    def __init__(
        self,
        spec: RunSpec,
        journal: Path,
        system_metrics: bool = True,
        down: Callable[[], bool] = lambda: False,
    ) -> None:
        """Start the thread.

        Args:
            spec: what opens the run, with its driver, who may be another process on another machine.
            journal: folder, of this run alone, on the local disk.
            system_metrics: whether to log the load of the machine.
            down: while it returns True, MLflow is taken not to answer; a test can make a fault that way.

        Raises:
            UserError: the journal cannot be written.
        """
        self._journal = Journal(journal)
        self._spec, self._down, self._wants_system = self._journal.note(spec), down, system_metrics
        self._writer: JournalReplay | None = None
        self._load: SystemMetrics | None = None
        self._sampled, self._sample_step = 0.0, 0
        self._failing = self._late = False
        self._lost = 0  # entries that the journal could not take
        self._requests: queue.Queue[_Request] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="mlflow-writer", daemon=True)
        self._thread.start()

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep the metrics of a step for the next write; NaN and infinities are allowed."""
        self._keep(lambda: self._journal.add_metrics(step, metrics))

    def log_image(self, key: str, image: "Path | np.ndarray[Any, Any]", step: int) -> None:
        """Keep an image for the next write: a file, or an array (H, W, C) of uint8 or of floats in [0, 1]."""
        self._keep(lambda: self._journal.add_image(key, image, step))

    def flush(self, timeout: float = 10.0) -> bool:
        """Write now and return whether everything has been written, after at most ``timeout`` seconds.

        While MLflow is known not to answer, this does not wait.
        """
        return self._write_all(0.0 if self._failing or self._late else timeout, last=False) and not self._lost

    def close(self, timeout: float = 30.0) -> bool:
        """Write what is left and stop; say on standard error what brings what could not be written, and return False.

        An MLflow that has kept a write waiting gets a few seconds only.
        """
        if self._write_all(min(timeout, LATE_SECONDS) if self._late else timeout, last=True):
            return not self._lost  # which has been said
        print(
            f"warning: MLflow at {without_password(self._spec.uri)} does not hold everything of run {self._spec.name}; "
            f"it is kept in {self._journal.folder}, and `denoise runs sync {self._spec.name}` brings it.",
            file=sys.stderr,
        )
        return False

    def _keep(self, add: Callable[[], None]) -> None:
        try:
            add()
        except OSError as error:  # training goes on; a checkpoint on the same disk will say what to do
            if not self._lost:
                print(
                    f"warning: {self._journal.folder} cannot be written ({error.strerror or error}); training goes on, "
                    "but MLflow will lack what it logs meanwhile.",
                    file=sys.stderr,
                )
            self._lost += 1

    def _write_all(self, timeout: float, last: bool) -> bool:
        request = _Request(threading.Event(), last)
        self._requests.put(request)
        self._late = not request.done.wait(timeout)
        return not (self._late or self._failing)

    def _work(self) -> None:
        last = False
        while not last:
            requests = self._next_requests()
            self._turn()
            self._late = False
            for request in requests:
                request.done.set()
            last = any(request.last for request in requests)
            if self._wants_system and not last:
                self._sample()

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
        uri = without_password(self._spec.uri)
        try:
            self._write()
        except Exception as error:  # a tracker must never stop training, whatever it raises
            self._writer = None  # the server that comes back may not be the one that went: look again what it has
            if not self._failing:
                print(
                    f"warning: MLflow at {uri} cannot be written to ({first_line(error)}); training goes on, and what "
                    f"it logs is kept in {self._journal.folder} and tried again.",
                    file=sys.stderr,
                )
            self._failing = True
        else:
            if self._failing:
                print(f"MLflow at {uri} answers again.", file=sys.stderr)
            self._failing = False

    def _write(self) -> None:
        if self._down():
            raise UnreachableError("it is kept from answering, as a test")
        if self._writer is None:
            self._writer = self._connect()
        else:
            check_answers(self._spec.uri)  # MLflow itself would try for minutes
        self._writer.write()

    def _connect(self) -> "JournalReplay":
        from pipelines.tracking.replay import JournalReplay

        with self._journal.opening_run():
            run_id = get_or_create_run(self._spec, driving=False)
        writer = JournalReplay(client(self._spec.uri), run_id, self._journal)
        if self._wants_system:  # another machine may have sampled an earlier attempt
            self._sample_step = max(self._sample_step, 1 + writer.last_step(SYSTEM_KEY))
        return writer

    def _sample(self) -> None:
        if time.monotonic() - self._sampled < SYSTEM_SECONDS:
            return
        self._sampled = time.monotonic()
        try:
            load = self._probed()  # also says how far earlier attempts have counted
            self.log_metrics(self._sample_step, load)
            self._sample_step += 1
        except Exception as error:  # whatever a probe raises
            print(f"warning: the load of the machine is not logged ({first_line(error)}).", file=sys.stderr)
            self._wants_system = False

    def _probed(self) -> dict[str, float]:
        if self._load is None:
            from pipelines.tracking.system_metrics import SystemMetrics

            self._load = SystemMetrics()
            steps = (point.step for point in self._journal.all_points() if point.key == SYSTEM_KEY)
            self._sample_step = max(self._sample_step, 1 + max(steps, default=-1))
        return self._load.sample()
