"""Names of files as they may be printed: nothing in them steers a terminal, breaks a line, or has no encoding."""


def printable(text: str, keep: str = "") -> str:
    r"""Return a text whose characters without a glyph are written as escapes, such as ``\n``, ``\x1b`` and ``\u202e``.

    A byte of a file's name that is no UTF-8, which Python holds as a surrogate, becomes ``\xe9``.

    Args:
        text: what will be printed.
        keep: characters that stay, such as the line ends of a table.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char in keep else _escape(char) for char in text)


def _escape(char: str) -> str:
    if "\udc80" <= char <= "\udcff":
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")
