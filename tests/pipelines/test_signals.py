"""Ctrl-C in and after Ray Tune: heard by the sweep, and not swallowed later."""

import signal

import pytest
from ray.tune.tune import _setup_signal_catching as begin_as_tune_does

from pipelines.signals import ctrl_c_on_sigterm, on_sigterm, tune_interrupt


@pytest.fixture
def at_a_terminal():
    """Tests run in the background may have inherited that Ctrl-C is ignored."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    usr1 = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGINT, previous)
    signal.signal(signal.SIGUSR1, usr1)


def interrupted_sweep(number: int = signal.SIGINT) -> None:
    with on_sigterm(ctrl_c_on_sigterm), tune_interrupt():
        stopped = begin_as_tune_does()
        signal.raise_signal(number)
        assert stopped.is_set()  # and the trials save a checkpoint


def failed_sweep() -> None:
    with tune_interrupt():
        begin_as_tune_does()
        raise ZeroDivisionError


def test_ctrl_c_that_tune_took_is_raised_when_tune_has_ended(at_a_terminal):
    with pytest.raises(KeyboardInterrupt):
        interrupted_sweep()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("ctrl_c", [signal.default_int_handler, signal.SIG_IGN])
def test_sigterm_stops_tune_as_ctrl_c_does_also_where_that_is_ignored(at_a_terminal, ctrl_c):
    signal.signal(signal.SIGINT, ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        interrupted_sweep(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), on_sigterm(ctrl_c_on_sigterm):
        signal.raise_signal(signal.SIGTERM)


def test_tune_does_not_take_a_later_ctrl_c(at_a_terminal):
    with tune_interrupt():
        begin_as_tune_does()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_an_error_in_tune_stays_the_error(at_a_terminal):
    with pytest.raises(ZeroDivisionError):
        failed_sweep()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
