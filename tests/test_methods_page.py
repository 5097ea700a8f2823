"""docs/methods.md against the code: every method, noise, network and recipe is there, with its size."""

import inspect
import re
from pathlib import Path

import pytest
import torch

from denoise.methods import METHODS
from denoise.nets import NETS, NetMaker, multiple_of, net_class
from denoise.noise import NOISES

PAGE = (Path(__file__).parents[1] / "docs/methods.md").read_text(encoding="utf-8")


def section(title):
    """Return the text under a heading, up to the next of its rank."""
    return re.split(r"\n## ", PAGE.partition(f"\n## {title}\n")[2])[0]


def rows(text):
    """Return the rows of the first table as lists of cells, by the name in their first cell."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {row[0].strip("`"): row for row in cells}


@pytest.mark.parametrize("title", ["All methods", "Faithful or not"])
def test_every_method_has_its_row(title):
    assert set(METHODS) <= set(rows(section(title)))


def test_every_kind_of_noise_has_its_row_with_a_valid_name():
    from denoise.noise import parse_noise

    names = set(rows(section("Noise"))) - {"name", "---"}
    assert sorted(parse_noise(name).family for name in names) == sorted(NOISES)


@pytest.mark.parametrize("name", NETS)
def test_a_network_has_its_row_with_its_fields_and_its_number_of_weights(name):
    row = rows(section("Networks"))[name]
    fields = list(inspect.signature(net_class(name)).parameters)
    with torch.device("meta"):
        nets = [NetMaker(name, channels, {})() for channels in (1, 3)]
    counts = " / ".join(f"{sum(weights.numel() for weights in net.parameters()):,}" for net in nets)
    assert counts in row[2]
    assert str(multiple_of(nets[0])) in row[3]
    assert [field for field in row[4].split(", ") if field] == [
        field for field in fields if field not in ("channels", "outputs", "blind_spot")
    ]


@pytest.mark.parametrize(("name", "net"), [(name, method.net) for name, method in METHODS.items() if name != "bm3d"])
def test_the_page_says_which_network_auto_is(name, net):
    sentence = re.search(r"`net=auto` is the method's own: (.*)", section("Networks"))[1]
    assert net == "unet_n2n" or f"`{net}` for `{name}`" in sentence
    assert "else `unet_n2n`" in sentence


@pytest.mark.parametrize(
    ("fields", "weights"),
    [
        ({"sigma": "known"}, "1,269,129"),
        ({"sigma": "constant"}, "1,269,130"),
        ({"sigma": "variable"}, "2,371,306"),
        ({"covariance": "diagonal"}, "291 fewer"),
        ({"mu_only": True}, "1,268,547"),
    ],
)
def test_the_variants_of_ssdn_have_the_weights_the_page_says(fields, weights):
    def count(**fields):
        with torch.device("meta"):
            net = METHODS["ssdn"](**fields).make_net(NetMaker("unet_ssdn", 3, {}))
        return sum(weights.numel() for weights in net.parameters())

    (key, value), *_ = fields.items()
    cell = rows(section("What each method assumes about the noise"))[f"method.{key}={str(value).lower()}"][2]
    assert cell == weights
    fewer = weights.endswith("fewer")
    assert f"{count() - count(**fields)} fewer" == weights if fewer else f"{count(**fields):,}" == weights
