"""Ray actors that carry words between the processes of a run, and between the trials of a sweep.

They import next to nothing: each is a process of its own, started for every run.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from denoise.training.fault_injection import Fault


class RunChannel:
    """A Ray actor that carries words between the workers and the driver, whichever machines they run on."""

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}
        self.validated: list[dict[str, float]] = []
        self.words: list[str] = []
        self.message, self.done = "", 0
        self.leave_asked = False
        self.struck: set[Fault] = set()

    def put(self, metrics: dict[str, float], validated: bool) -> None:
        """Leave the latest metrics."""
        self.latest = metrics
        if validated:
            self.validated.append(metrics)

    def say(self, sentence: str) -> None:
        """Leave a sentence for the driver to print."""
        self.words.append(sentence)

    def take(self) -> tuple[dict[str, float], list[str], list[dict[str, float]]]:
        """Return the latest metrics, and the sentences and the metrics of validations since the last call."""
        words, self.words = self.words, []
        validated, self.validated = self.validated, []
        return self.latest, words, validated

    def request_stop(self) -> None:
        """Ask the workers to save a checkpoint and return."""
        self.leave_asked = True

    def stop_requested(self) -> bool:
        """Say whether the workers were asked to leave."""
        return self.leave_asked

    def first(self, fault: "Fault") -> bool:
        """Say whether a fault strikes for the first time."""
        known = fault in self.struck
        self.struck.add(fault)
        return not known

    def end(self, message: str, done: int) -> None:
        """Say after how many steps training has ended, or why the run cannot succeed; the first reason stays."""
        self.message, self.done = self.message or message, done

    def ending(self) -> tuple[str, int]:
        """Return why the run cannot succeed, empty while there is no reason, and the steps done at the end."""
        return self.message, self.done


class PruneFlags:
    """A Ray actor that knows which trials are pruned, whichever machines they run on."""

    def __init__(self) -> None:
        self.pruned: set[int] = set()

    def prune(self, number: int) -> None:
        """Note that a trial should leave."""
        self.pruned.add(number)

    def is_pruned(self, number: int) -> bool:
        """Say whether a trial should leave."""
        return number in self.pruned
