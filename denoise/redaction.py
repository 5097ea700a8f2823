"""Removal of passwords and keys from addresses, before they are printed or written anywhere.

Every ``UserError`` passes through it, and so does every configuration that is recorded (``config.recorded``).
"""

import re
from typing import Any

HIDDEN = "***"
# SQLAlchemy takes passwords with / and @ in them, so the user part of a database's address ends at its last @; that of
# a web address too, except that http://host:8080/a@b has none.
_WEB = re.compile(r"(\bhttps?://)(?:[^\s/@:]*:(?!\d{1,5}/)\S*|[^\s/@:]*)@", re.IGNORECASE)
_OTHER = re.compile(r"(\b(?!https?:)[a-z][a-z0-9+.-]*://)\S*@", re.IGNORECASE)
_ONE_ADDRESS = re.compile(r"((?!https?:)[a-z][a-z0-9+.-]*://).*@", re.IGNORECASE | re.DOTALL)  # blanks in it, too
_FIELD = re.compile(r"([?&;][\w.-]*(?:pass|pwd|token|secret|signature|credential|sig|key)[\w.-]*=)[^&;\s'\"]+", re.I)


def without_passwords(text: str) -> str:
    """Return a text with user, password and secret query fields of every address in it replaced by ``***``."""
    hidden = rf"\g<1>{HIDDEN}"
    text = _ONE_ADDRESS.sub(hidden + "@", text, count=1) if _ONE_ADDRESS.match(text) else text
    return _FIELD.sub(hidden, _OTHER.sub(hidden + "@", _WEB.sub(hidden + "@", text)))


def has_password(address: str) -> bool:
    """Return whether an address holds what ``without_passwords`` would hide."""
    return without_passwords(address) != address


def redacted(tree: Any) -> Any:
    """Return plain data (mappings, lists, scalars) whose strings hold no passwords."""
    if isinstance(tree, str):
        return without_passwords(tree)
    if isinstance(tree, dict):
        return {key: redacted(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [redacted(value) for value in tree]
    return tree
