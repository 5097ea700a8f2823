"""Handlers of SIGTERM and Ctrl-C: set an event, exit, or raise KeyboardInterrupt."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object]


@contextmanager
def on_sigterm(handler: Handler) -> Iterator[None]:
    """Call ``handler`` at SIGTERM while the block runs; do nothing outside the main thread."""
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
    """Yield an event that SIGTERM sets, for work that saves a checkpoint before it ends."""
    event = threading.Event()
    with on_sigterm(lambda number, frame: event.set()):
        yield event


def exit_on_sigterm(number: int, frame: FrameType | None) -> None:
    """Raise SystemExit, so that ``finally`` blocks run before the process ends, as after Ctrl-C."""
    raise SystemExit(128 + number)


def interrupt_on_sigterm(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, as Ctrl-C does."""
    raise KeyboardInterrupt


def ctrl_c_on_sigterm(number: int, frame: FrameType | None) -> None:
    """Do what Ctrl-C does at the moment, also in a process of the background, which ignores Ctrl-C."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):
        raise KeyboardInterrupt
    handler(signal.SIGINT, frame)


@contextmanager
def plain_interrupt() -> Iterator[None]:
    """Turn SystemExit into KeyboardInterrupt, and restore the Ctrl-C handler: Ray Train installs one that exits."""
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


@contextmanager
def tune_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt at the end of a block in which Ray Tune took a Ctrl-C, and restore the handler.

    Tune's own handler stops the trials and says nothing to its caller. It gives way to the previous one when it was
    called; otherwise it stays, and would swallow the next Ctrl-C, long after Tune has ended.
    """
    if threading.current_thread() is not threading.main_thread() or os.environ.get("TUNE_DISABLE_SIGINT_HANDLER"):
        yield
        return
    previous = signal.getsignal(signal.SIGINT)
    try:
        yield
        if signal.getsignal(signal.SIGINT) is previous:
            raise KeyboardInterrupt
    finally:
        signal.signal(signal.SIGINT, previous)
