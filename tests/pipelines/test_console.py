import os
import pty
import subprocess
import sys

from pipelines.console import progress

SCRIPT = """
from pipelines.console import progress
with progress("shard kodak", 3) as advance:
    for _ in range(3):
        advance(1, "[/red]\\x1b]0;title\\x07.png")
"""


def test_a_log_gets_plain_lines(capsys):
    with progress("shard kodak", 4, "images") as advance:
        for _ in range(4):
            advance(1, "kodim04.png")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("shard kodak: 4/4 images, ")
    assert lines[0].endswith("images/s kodim04.png")


def test_bytes_are_shown_as_megabytes(capsys):
    with progress("fetch", 5_000_000, "bytes", done=1_000_000) as advance:
        advance(4_000_000)
    assert capsys.readouterr().err.startswith("fetch: 5/5 MB, ")


def test_names_neither_steer_a_log_nor_count_as_markup(capsys):
    with progress("shard own", 1) as advance:
        advance(1, "a[/b]\x1b[2J\nerror: forged.png")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(r"a[/b]\x1b[2J\nerror: forged.png")


def test_unknown_totals_and_empty_work(capsys):
    with progress("fetch", None) as advance:
        advance()
    with progress("nothing", 0):
        pass
    assert "fetch: 1 images" in capsys.readouterr().err


def test_a_terminal_gets_a_bar():
    outside, inside = pty.openpty()
    done = subprocess.run([sys.executable, "-c", SCRIPT], stderr=inside, env={**os.environ, "TERM": "xterm"})
    os.close(inside)
    shown = os.read(outside, 1 << 16).decode()
    os.close(outside)
    assert done.returncode == 0
    assert "━" in shown
    assert "3/3" in shown
    assert r"[/red]\x1b]0;title\x07.png" in shown
    assert "\x1b]" not in shown
