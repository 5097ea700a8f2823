"""JSON and YAML that were made to take all time or memory, or to end in a traceback."""

import time

import pytest

from denoise.config import load_config
from denoise.documents import DEEPEST, parse_json, parse_yaml
from denoise.errors import UserError

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
MERGES = "a0: &a0 {k: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))
YAML = {
    "aliases that multiply": LAUGHS,
    "merged keys that multiply": MERGES,
    "an alias within itself": "&a [*a]",
    "open brackets": "[" * 2_000,
    "brackets": "[" * 400 + "]" * 400,
    "braces": "{a: " * 15_000,
    "a list in a list": "- " * 30_000,
    "keys of keys": "? " * 30_000,
    "too long": "a" * (1 << 20),
    "many values": "- a\n" * 16_000,
    "a number of many digits": "9" * 9000,
    "a hexadecimal number": "0x" + "F" * 60_000,
    "a sexagesimal number": "1:" * 20_000 + "1",
    "a sexagesimal float": "1:" * 20_000 + "1.5",
    "a date that is none": "2020-13-45",
    "a date": "2020-01-01",
    "a time zone that is none": "0001-01-01 00:00:00 +99:99",
    "bytes": "!!binary aGk=",
    "a set": "!!set {a, b}",
    "no number": "!!int x",
    "no truth": "!!bool x",
    "no time": "!!timestamp x",
    "an object": "!!python/object/apply:os.system [id]",
    "a key that is no text": "1: 2",
    "NUL": '"\\0"',
    "half a character": '"\\ud800"',
    "a control character": "a: \x01",
    "an unknown alias": "*a",
    "binary digits": "0b_",
    "a key twice": "a: 1\nb: {c: 1, 'c': 2}",
}


@pytest.mark.parametrize("text", YAML.values(), ids=YAML.keys())
def test_no_yaml_takes_long_or_ends_in_a_traceback(text, tmp_path):
    start = time.thread_time()
    with pytest.raises(ValueError, match=r".") as caught:
        parse_yaml(text)
    assert len(str(caught.value)) < 500
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError, match=r"params\.yaml is not valid YAML: "):
        load_config(tmp_path / "params.yaml")
    assert time.thread_time() - start < 10


@pytest.mark.parametrize("text", YAML.values(), ids=YAML.keys())
def test_no_override_takes_long_or_ends_in_a_traceback(text):
    with pytest.raises(UserError, match="train.lr") as caught:
        load_config(None, [f"train.lr={text}"])
    assert len(str(caught.value)) < 300


def test_yaml_that_people_write_is_read():
    first = {"lr": 0.001, "list": [True, None, float("inf"), "1e-3"]}
    text = "a: &x {lr: 1.0e-3, list: [yes, null, .inf, 1e-3]}\nb: {<<: *x, c: é}\n"
    assert parse_yaml(text) == {"a": first, "b": {**first, "c": "é"}}


def test_a_key_twice_is_refused_with_its_lines(tmp_path):
    (tmp_path / "params.yaml").write_text("train:\n  steps: 100\n  crop: 32\n  steps: 200\n")
    with pytest.raises(UserError, match=r"params\.yaml is not .* has the key 'steps' twice, in lines 2 and 4; delete"):
        load_config(tmp_path / "params.yaml")


def test_a_merged_key_may_be_overridden():
    assert parse_yaml("a: &x {k: 1}\nb: {<<: *x, k: 2}\nc: {k: 3}\n")["b"] == {"k": 2}


def test_an_empty_document_is_nothing():
    assert parse_yaml("") is None
    assert parse_yaml("# only a comment\n") is None


def test_json_is_read_to_a_depth():
    assert parse_json("[" * DEEPEST + "]" * DEEPEST) is not None
    for text in ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "[" * 100_000, '{"a":' * 900 + "1" + "}" * 900):
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json(text)
    for text in (b"\xff", b"", b"{", "9" * 9000):
        with pytest.raises(ValueError, match=r"."):
            parse_json(text)
