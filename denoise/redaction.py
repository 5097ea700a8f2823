"""Removal of passwords and keys from addresses, before they are printed or written anywhere.

Every ``UserError`` passes through it, and so does every configuration that is recorded (``config.recorded``).
"""

import re
from typing import Any

HIDDEN = "***"
# Parts of addresses have a limit here, so that no text, however long, takes long to search.
# A web address may name a user or a token before its first slash. What has a slash is a password, too, unless it begins
# like a port: http://host:8080/a@b has none.
_WEB = re.compile(r"(\b(?:https?|file|sqlite)://)(?:[^\s/:]*:(?!\d{1,5}/)\S{0,3000}|[^\s/@:]*)@", re.IGNORECASE)
_S3 = re.compile(r"(\bs3://)[^\s/@:]*(?::\S{0,3000})?@", re.IGNORECASE)  # the keys of AWS may have slashes
# SQLAlchemy takes passwords with / and @ in them, so the user part of a database's address ends at its last @. A user
# without a password is no secret: libpq takes the password from the environment.
_SCHEME = r"(?!(?:https?|file|sqlite|s3):)[a-z][a-z0-9+.-]*://"
_OTHER = re.compile(rf"(\b{_SCHEME})[^\s/:]*:\S{{0,3000}}@", re.IGNORECASE)
# The same where the address is the whole text, alone or as KEY=ADDRESS: there may be blanks in the password.
_ONE_ADDRESS = re.compile(rf"((?:[\w.-]+=)*{_SCHEME})[^\s/:]*:.*@", re.IGNORECASE | re.DOTALL)
_FIELD = re.compile(
    r"([?&;][\w.-]*(?:pass|pwd|token|secret|signature|credential|sig|key|odbc)[\w.-]*=)[^&;\s'\"]+", re.IGNORECASE
)


def without_passwords(text: str) -> str:
    """Return a text in which ``***`` stands for the user, password and secret query fields of every address."""
    if "@" in text and _ONE_ADDRESS.match(text):
        text = _ONE_ADDRESS.sub(rf"\g<1>{HIDDEN}@", text, count=1)
    for pattern in (_WEB, _S3, _OTHER) if "@" in text else ():
        text = pattern.sub(rf"\g<1>{HIDDEN}@", text)
    return _FIELD.sub(rf"\g<1>{HIDDEN}", text)


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
