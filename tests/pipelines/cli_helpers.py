"""What the tests of commands share."""


def sentence(stderr: str) -> str:
    """Return the one sentence about a mistake, the last line on standard error."""
    last = stderr.strip().splitlines()[-1]
    assert last.startswith("error: "), stderr
    assert last.endswith("."), stderr
    assert "Traceback" not in stderr
    return last
