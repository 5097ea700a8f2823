"""The exception whose message is shown to the user."""

from collections.abc import Iterable
from difflib import get_close_matches

from denoise.printable import printable
from denoise.redaction import without_passwords


class UserError(Exception):
    """Bad input, explained in one sentence: what was given, what was expected, what to do.

    The command line prints the sentence and exits with 1, without a traceback. Passwords of addresses in it are hidden,
    and characters of file names that would steer the terminal are escaped.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(without_passwords(str(message))))


class UsageError(UserError):
    """An unknown command or key; the command line exits with 2."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean NAME?)" for the known name closest to ``name``, or nothing where none is close."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type, without the full stop and without passwords."""
    text = without_passwords(str(error)).strip()
    return printable(text.splitlines()[0] if text else type(error).__name__).rstrip(".")
