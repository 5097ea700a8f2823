"""Names of files in messages: nothing in them steers the terminal or breaks the line."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from denoise.errors import UserError, first_line
from denoise.printable import printable

pytestmark = pytest.mark.smoke


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("café 雪 🙂.png", "café 雪 🙂.png"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("\u202egnp.exe", r"\u202egnp.exe"),  # turns the direction of writing
        ("\x9b31m", r"\x9b31m"),  # the C1 form of ESC [
        (os.fsdecode(b"caf\xe9.png"), r"caf\xe9.png"),
        ("\ud800", r"\ud800"),
    ],
)
def test_names_are_shown_by_what_they_hold(name: str, shown: str) -> None:
    assert printable(name) == shown
    assert str(UserError(f"{name} is broken.")) == f"{shown} is broken."


@given(st.binary(max_size=40))
def test_any_name_of_a_file_can_be_printed(name: bytes) -> None:
    text = printable(os.fsdecode(name))
    assert text.isprintable()
    assert text.encode().decode() == text


def test_line_ends_of_a_table_stay() -> None:
    assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"
    assert first_line(OSError("no file \x1b[1m\nand more")) == r"no file \x1b[1m"
