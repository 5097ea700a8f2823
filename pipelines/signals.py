"""SIGTERM and Ctrl-C: what this process does when it is asked to end."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object]


@contextmanager
def on_sigterm(handler: Handler) -> Iterator[None]:
    """Call ``handler`` at SIGTERM while the block runs; outside the main thread, which alone may set it, do nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def stop_event_on_sigterm() -> Iterator[threading.Event]:
    """Set an event at SIGTERM instead of ending at once, for work that saves a checkpoint first."""
    event = threading.Event()
    with on_sigterm(lambda number, frame: event.set()):
        yield event


def exit_on_sigterm(number: int, frame: FrameType | None) -> None:
    """Raise SystemExit, so that a block is left, and its ``finally`` parts run, as after Ctrl-C."""
    raise SystemExit(128 + number)


def interrupt_on_sigterm(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, as Ctrl-C does."""
    raise KeyboardInterrupt


@contextmanager
def plain_interrupt() -> Iterator[None]:
    """Make Ctrl-C a KeyboardInterrupt again: Ray Train sets a handler of its own, and leaves with SystemExit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, previous)
