"""Documents that somebody else may have written, JSON and YAML: read within bounds, and checked against a dataclass.

A document can be built to take all time or memory: by nesting, by aliases that multiply, by numbers of a million
digits. What is read here is plain data (mappings with text as keys, lists, texts, numbers, true, false, null) of a size
and depth that no honest file of ours comes near.
"""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from denoise.errors import UsageError, UserError, nearest

T = TypeVar("T")
DEEPEST = 50  # levels of lists and mappings
LONGEST_YAML = 1 << 16  # characters: PyYAML reads about a hundred thousand in a second
MOST_VALUES = 10_000  # of a YAML document, where every alias counts as what it stands for
LARGEST_INT = (1 << 63) - 1
LONGEST_QUOTE = 80  # characters of a value in a message
_ADAPTERS: dict[type, TypeAdapter[Any]] = {}  # making one takes ten times as long as using it
# What PyYAML raises for !!int x, !!bool x, !!timestamp x, 2020-13-45 and others like them.
_YAML_ERRORS = (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def parse_json(text: str | bytes) -> Any:
    """Return the data of a JSON text.

    Raises:
        ValueError: it is not JSON, or nested too deeply.
    """
    try:
        tree = json.loads(text)
    except RecursionError:
        raise ValueError(_too_deep()) from None
    level = [tree]
    for _ in range(DEEPEST):
        level = [child for node in level if isinstance(node, dict | list) for child in _children(node)]
        if not level:
            return tree
    raise ValueError(_too_deep())


def parse_yaml(text: str) -> Any:
    """Return the data of a YAML text: what JSON can hold, with finite or infinite numbers of 64 bits.

    Raises:
        ValueError: it is not YAML, too long, nested too deeply, has a key twice in a mapping, or holds other values;
            the reason, in a few words.
    """
    if len(text) > LONGEST_YAML:
        raise ValueError(f"it has {len(text)} characters, more than the {LONGEST_YAML} that are read")
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _check_nodes(root)
        tree = loader.construct_document(root)
        _check_plain(tree)
    except RecursionError:
        raise ValueError(_too_deep()) from None
    except _YAML_ERRORS as error:
        raise ValueError(" ".join(str(error).partition("; use sys.")[0].split()).rstrip(".")) from None
    return tree


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the keys and values of a YAML file.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not valid YAML: {error}.") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} should hold keys and values, but it is a {type(tree).__name__}.")
    return tree


def value_of(text: str) -> object:
    """Return a value as YAML reads it; what is a text stays as it is written: folders may have `` #`` in a name."""
    try:
        value = parse_yaml(text) if text else ""
    except ValueError:
        return text
    is_text = (
        (isinstance(value, str) and text[0:1] not in ("'", '"'))
        or (isinstance(value, Mapping) and not text.startswith("{"))
        or (value is None and text.startswith("#"))
    )
    return text if is_text else value


def build(cls: type[T], values: Mapping[str, object], where: str = "") -> T:
    """Return the dataclass ``cls`` of ``values``, converted to its types; ``where`` is the key above them.

    Raises:
        UsageError: an unknown key, a value of another type or out of bounds, or a number that is not finite.
    """
    check_keys(cls, values, where)
    try:
        if cls not in _ADAPTERS:
            _ADAPTERS[cls] = TypeAdapter(cls)
        built: T = _ADAPTERS[cls].validate_python(dict(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key, reason = _joined(where, *map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        message = f"invalid value {quoted(first['input'])} for {key}: {reason[:1].lower()}{reason[1:]}."
        raise UsageError(message) from None
    for key, number in _numbers(built, where):
        if not math.isfinite(number):
            raise UsageError(f"invalid value {number} for {key}: input should be a finite number.")
    return built


def check_keys(cls: type, values: Mapping[str, object], where: str = "") -> None:
    """Refuse keys that the dataclass ``cls``, or one within it, does not have.

    Raises:
        UsageError: there is one, or a value stands where keys belong.
    """
    if not dataclasses.is_dataclass(cls):
        return
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key, value in values.items():
        path = _joined(where, key)
        if key not in fields:
            raise UsageError(f"{path} is not a key{nearest(key, fields)}; known here: {', '.join(fields) or 'none'}.")
        kind = fields[key].type
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            if not isinstance(value, Mapping):
                raise UsageError(f"{path} should hold keys of its own, but it is {quoted(value)}.")
            check_keys(kind, value, path)


def quoted(value: object) -> str:
    """Return a value as it is shown in a message, not longer than a line."""
    text = repr(value)
    return text if len(text) <= LONGEST_QUOTE else f"{text[: LONGEST_QUOTE - 3]}..."


def _too_deep() -> str:
    return f"it is nested too deeply: more than {DEEPEST} levels"


def _children(node: "dict[str, Any] | list[Any]") -> Any:
    return node.values() if isinstance(node, dict) else node


def _check_nodes(root: yaml.Node) -> None:
    """Refuse a document that is too deep or too large, before its aliases are written out, or has a key twice."""
    waiting, count = [(root, 1)], 0
    while waiting:
        node, depth = waiting.pop()
        count += 1
        if depth > DEEPEST:  # also that of an alias within what it stands for
            raise ValueError(_too_deep())
        if count > MOST_VALUES:
            raise ValueError(f"it holds more than {MOST_VALUES} values, with those that its aliases stand for")
        if isinstance(node, yaml.MappingNode):
            _check_keys_once(node)
            waiting += [(child, depth + 1) for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(child, depth + 1) for child in node.value]


def _check_keys_once(node: yaml.MappingNode) -> None:
    """Refuse a mapping with a key twice, of which PyYAML takes the last; a merged key (<<) may be overridden."""
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            line = key.start_mark.line + 1
            if key.value in lines:
                first = lines[key.value]
                raise ValueError(f"it has the key {quoted(key.value)} twice, in lines {first} and {line}; delete one")
            lines[key.value] = line


def _check_plain(value: object) -> None:
    """Refuse what JSON cannot hold, and text that no file or path can."""
    if isinstance(value, dict):
        for key, child in value.items():
            if not isinstance(key, str):
                raise ValueError(f"its key {quoted(key)} is no text; write it in quotes")
            _check_plain(key)
            _check_plain(child)
    elif isinstance(value, list):
        for child in value:
            _check_plain(child)
    elif isinstance(value, str):
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError(f"its text {quoted(value)} holds a character that cannot be written")
    elif isinstance(value, int) and abs(value) > LARGEST_INT:
        raise ValueError("it holds a number of more than 64 bits")
    elif not (value is None or isinstance(value, int | float)):
        raise ValueError(f"its value {quoted(value)} is a {type(value).__name__}; write it in quotes")


def _numbers(value: object, path: str) -> Iterator[tuple[str, float]]:
    """Yield every float in a value, with its key."""
    if isinstance(value, float):
        yield path, value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _numbers(getattr(value, field.name), _joined(path, field.name))
    elif isinstance(value, Mapping):
        for key, child in value.items():
            yield from _numbers(child, _joined(path, key))
    elif isinstance(value, list | tuple):
        for child in value:
            yield from _numbers(child, path)


def _joined(*parts: object) -> str:
    return ".".join(str(part) for part in parts if part != "")
