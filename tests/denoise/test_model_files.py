"""Model folders from elsewhere: cards and weights that lie are refused in one sentence, before memory is taken."""

import copy
import json
import resource
import struct
import time

import pytest
import torch
from safetensors.torch import save_file

from denoise.denoiser import load_denoiser, make_card, save_model
from denoise.errors import UserError
from denoise.evaluate import training_noise
from denoise.model_files import MAX_CARD, model_digest
from denoise.nets import NetMaker

pytestmark = pytest.mark.smoke

CONFIG = {
    "method": {"name": "n2v", "fields": {"radius": 3}},
    "net": {"name": "cnn5", "fields": {"features": 4}},
    "noise": "gauss25",
    "train": {"augment": ["flip"]},
    "data": {"fixed_noise": True},
}
PROVENANCE = {"run": "n2v", "data": [{"name": "samples", "split": "train", "digest": "0" * 64}]}


@pytest.fixture
def folder(tmp_path):
    net = NetMaker("cnn5", 3, {"features": 4})()
    save_model(tmp_path / "model", net, make_card(CONFIG, 3, **PROVENANCE))
    return tmp_path / "model"


def paths(tree, prefix=()):
    """Yield the path of every entry of a tree of mappings and lists."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, child in entries:
        yield (*prefix, key)
        yield from paths(child, (*prefix, key))


def mutated(card, path, change):
    card = copy.deepcopy(card)
    parent = card
    for key in path[:-1]:
        parent = parent[key]
    change(parent, path[-1])
    return card


def put(value):
    return lambda parent, key: parent.__setitem__(key, value)


def nested(depth):
    return json.loads("[" * depth + "]" * depth)


WRONG = {
    "missing": lambda parent, key: parent.pop(key),
    "null": put(None),
    "true": put(True),
    "minus": put(-1),
    "zero": put(0),
    "huge": put(10**300),
    "fraction": put(0.5),
    "infinite": put(float("inf")),
    "nan": put(float("nan")),
    "text": put("x"),
    "long text": put("x" * 100_000),
    "escape": put("\x1b[2J\n"),
    "half a character": put("\ud800"),
    "path": put("../../x"),
    "list": put([]),
    "list of lists": put([[[1]]]),
    "mapping": put({"x": 1}),
    "deep": put(nested(45)),
}


def refusal(folder):
    """Return the message with which a model folder is refused, None where it can be used."""
    try:
        denoiser = load_denoiser(folder)
    except UserError as error:
        return str(error)
    assert denoiser.averaging().symmetries
    assert denoiser.level_of(torch.rand(3, 16, 16)) > 0
    assert training_noise(denoiser.card) in ("fresh", "fixed", "untrained")
    return None


@pytest.mark.parametrize("wrong", WRONG)
def test_a_card_with_any_entry_of_another_kind_loads_or_is_refused_in_a_sentence(folder, wrong):
    card = json.loads((folder / "model.json").read_text())
    refusals = {}
    for path in list(paths(card)):
        (folder / "model.json").write_text(json.dumps(mutated(card, path, WRONG[wrong])))
        refusals[path] = refusal(folder)
    assert all(refusals[path] for path in [("format",), ("method",), ("net",), ("channels",), ("noise",), ("config",)])
    for message in filter(None, refusals.values()):
        assert str(folder) in message
        assert len(message.replace(str(folder), "")) < 500


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "is not a model card"),
        ('{"format": 1, "method": ' + "[" * 900 + "]" * 900 + "}", "is not a model card"),
        ('{"format": 1' + "0" * 5000 + "}", "is not a model card"),
        ('{"format": true}', "is not a model card|is damaged"),
        ('{"format": 3}', "has format 3"),
        (b"\xff\xfe\x00", "is not a model card"),
        (" " * (MAX_CARD + 1), "more than"),
        ('{"format": 1}', "is damaged: method: field required"),
    ],
)
def test_a_text_that_is_no_card_is_refused_at_once(folder, text, reason):
    (folder / "model.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    start = time.monotonic()
    with pytest.raises(UserError, match=reason):
        load_denoiser(folder)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("net", "method"),
    [
        ({"name": "drunet", "fields": {"features": 1024}}, {}),  # 33 GB
        ({"name": "drunet", "fields": {"features": 256, "blocks": 4}}, {}),  # 2 GB
        ({"name": "unet_n2v", "fields": {"depth": 12, "features": 512}}, {}),
        ({"name": "unet_n2v", "fields": {"depth": 1000}}, {}),
        ({"name": "dncnn", "fields": {"depth": 256, "features": 1024}}, {}),
        ({"name": "dncnn", "fields": {"depth": 10**9}}, {}),
        ({"name": "cnn5", "fields": {"features": 10**12}}, {}),
        ({"name": "zs_n2n", "fields": {"maps": 60_000}}, {}),
        ({"name": "zs_n2n", "fields": {"maps": -4}}, {}),
        ({"name": "unet_ssdn", "fields": {}}, {"name": "ssdn", "fields": {}}),
        ({"name": "cnn5", "fields": {"features": 4}}, {"name": "b2u", "fields": {"cell": 10**6}}),
        ({"name": "cnn5", "fields": {"features": 4}}, {"name": "r2r", "fields": {"passes": 10**9}}),
    ],
)
def test_a_card_that_asks_for_more_than_its_file_holds_takes_no_memory(folder, net, method):
    card = json.loads((folder / "model.json").read_text())
    card["net"], card["method"] = net, method or card["method"]
    (folder / "model.json").write_text(json.dumps(card))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(UserError, match=r"is damaged|cannot be used"):
        load_denoiser(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB; torch loads some code at first
    assert time.monotonic() - start < 20


def header(entries: dict, length: int | None = None, data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"x" * 100,
        header({}, length=2**60),
        header({}, length=2**64 - 1),
        header({}),
        header({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, data=b"\0" * 4),
        header({"x": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, data=b"\0" * 4),
        header({"x": {"dtype": "F32", "shape": [700_000_000], "data_offsets": [0, 2_800_000_000]}}),
        header({"x": {"dtype": "Z9", "shape": [1], "data_offsets": [4, 0]}}),
        header({"x": nested(400)}),
    ],
)
def test_a_file_of_weights_that_lies_is_refused(folder, content):
    (folder / "net.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        load_denoiser(folder)


@pytest.mark.parametrize("change", ["missing", "renamed", "transposed", "half", "more"])
def test_weights_of_another_net_are_refused(folder, change):
    weights = {name: tensor.contiguous() for name, tensor in load_denoiser(folder).net.state_dict().items()}
    name = next(name for name, tensor in weights.items() if tensor.ndim == 4)
    if change in ("missing", "renamed"):
        tensor = weights.pop(name)
        weights |= {"other": tensor} if change == "renamed" else {}
    elif change == "more":
        weights["more"] = torch.zeros(1)
    else:
        weights[name] = weights[name].half() if change == "half" else weights[name].transpose(0, 1).contiguous()
    save_file(weights, folder / "net.safetensors")
    with pytest.raises(UserError, match=r"is damaged: .*net of model\.json"):
        load_denoiser(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_neither_loaded_nor_saved(folder, tmp_path, value):
    denoiser = load_denoiser(folder)
    weights = {name: tensor.contiguous() for name, tensor in denoiser.net.state_dict().items()}
    name = list(weights)[-1]
    weights[name].view(-1)[0] = value
    save_file(weights, folder / "net.safetensors")
    with pytest.raises(UserError, match=f"has weights that are not finite \\({name}\\)"):
        load_denoiser(folder)
    denoiser.net.load_state_dict(weights)
    with pytest.raises(UserError, match="its training diverged"):
        save_model(tmp_path / "new", denoiser.net, denoiser.card)
    assert not (tmp_path / "new").exists()


def test_the_digest_is_that_of_both_files(folder):
    digest = model_digest(folder)
    for name in ("model.json", "net.safetensors"):
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(before + b" ")
        assert model_digest(folder) != digest
        (folder / name).write_bytes(before)
    assert load_denoiser(folder).digest == digest == model_digest(folder)
