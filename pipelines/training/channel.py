"""Messages between the driver of a run and its workers, and the actor that keeps them.

The actor is a process of its own, one for a run or for a whole sweep, which imports this file: it imports next to
nothing.
"""

import uuid
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

if TYPE_CHECKING:
    from denoise.training.fault_injection import Fault

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


class RunMessages:
    """What the workers and the driver of one run have to tell each other."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}  # the latest
        self.validations: list[dict[str, float]] = []
        self.messages: list[str] = []
        self.stopping = False
        self.injected: set[Fault] = set()
        self.failure, self.steps = "", 0

    def put_metrics(self, metrics: dict[str, float], validated: bool) -> None:
        """Leave the latest metrics for the driver; those of a validation are kept until it has read them."""
        self.metrics = metrics
        if validated:
            self.validations.append(metrics)

    def put_message(self, message: str) -> None:
        """Leave a message for the driver to print."""
        self.messages.append(message)

    def take(self) -> tuple[dict[str, float], list[str], list[dict[str, float]]]:
        """Return the latest metrics, and the messages and the metrics of validations since the last call."""
        messages, self.messages = self.messages, []
        validations, self.validations = self.validations, []
        return self.metrics, messages, validations

    def request_stop(self) -> None:
        """Ask the workers to save a checkpoint and return."""
        self.stopping = True

    def stop_requested(self) -> bool:
        """Return whether the workers were asked to stop."""
        return self.stopping

    def first_time(self, fault: "Fault") -> bool:
        """Return whether a fault is injected for the first time, over all restarts of the workers."""
        known = fault in self.injected
        self.injected.add(fault)
        return not known

    def end(self, failure: str, steps: int) -> None:
        """Record how many steps are done at the end, or why the run cannot succeed; the first reason stays."""
        self.failure, self.steps = self.failure or failure, steps

    def ending(self) -> tuple[str, int]:
        """Return why the run cannot succeed, empty while there is no reason, and the steps done at the end."""
        return self.failure, self.steps


class MessagesActor:
    """The Ray actor that keeps the messages of all runs of a command, on whichever hosts these are."""

    def __init__(self) -> None:
        self.runs: defaultdict[str, RunMessages] = defaultdict(RunMessages)

    def call(self, run: str, method: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of a run's messages."""
        return getattr(self.runs[run], method)(*arguments, **options)

    def drop(self, run: str) -> None:
        """Forget a run, which has ended."""
        self.runs.pop(run, None)


def start_messages() -> Any:
    """Start the actor on this node, and return its handle: elsewhere it would die with a host that runs survive."""
    import ray

    from pipelines.cluster.connect import this_node

    return ray.remote(num_cpus=0, scheduling_strategy=this_node())(MessagesActor).remote()


class RunChannel:
    """One run's way to its messages, which Ray serialises for the run's workers; with ``with``, they end there.

    Args:
        actor: handle of the MessagesActor.
        run: key of the run. By default a new one: then nothing reaches it from processes of an earlier attempt.
    """

    def __init__(self, actor: Any, run: str = "") -> None:
        self.actor, self.run = actor, run or uuid.uuid4().hex

    def ask(
        self,
        method: Callable[Concatenate[RunMessages, Arguments], Answer],
        *arguments: Arguments.args,
        **options: Arguments.kwargs,
    ) -> Answer:
        """Call a method of the run's messages and return its answer; a RayError says that the actor is gone."""
        import ray

        answer: Answer = ray.get(self.actor.call.remote(self.run, method.__name__, *arguments, **options))
        return answer

    def send(
        self,
        method: Callable[Concatenate[RunMessages, Arguments], None],
        *arguments: Arguments.args,
        **options: Arguments.kwargs,
    ) -> None:
        """Call a method of the run's messages without waiting for it."""
        self.actor.call.remote(self.run, method.__name__, *arguments, **options)

    def __enter__(self) -> "RunChannel":
        """Return the channel."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Have the actor forget the run."""
        self.actor.drop.remote(self.run)
