"""The recipes: complete, understood by every part they name, and with images converted to steps."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from denoise.errors import UserError
from pipelines.training.recipes import load_recipe, names, recipes

pytestmark = pytest.mark.smoke

ROOT = Path(__file__).parents[3]
RECIPES = recipes()

# What params.yaml sets for its demo must not leak into a recipe: each says all of this itself.
COMPLETE = {
    "noise",
    "method",
    "net",
    *(f"data.{key}" for key in ("train", "val", "test", "colour", "min_side", "max_side", "fixed_noise")),
    *(f"train.{key}" for key in ("steps", "batch_size", "crop", "lr", "optimizer", "betas", "weight_decay")),
    *(f"train.{key}" for key in ("schedule", "augment", "ema", "log_every", "eval_every", "checkpoint_every")),
    *(f"evaluate.{key}" for key in ("protocol", "passes", "average")),
}
SHAPES = {"ramp": {"rampup", "rampdown"}, "multistep": {"milestones", "gamma"}, "decay": set(), "fixed": set()}

# recipe name (pattern) -> what the source counts, in numbers, and the steps that follow from it
BUDGETS = {
    r"laine2019-(gauss|poisson).*": (2_000_000 / 4, 500_000),
    r"laine2019-impulse0\.5-(n2c|n2n)": (16_000_000 / 4, 4_000_000),
    r"laine2019-impulse0\.5-ssdn-(known|unknown)": (4_000_000 / 4, 1_000_000),
    r"laine2019-impulse0\.5-mu-only": (8_000_000 / 4, 2_000_000),
    r"lehtinen2018-.*": (2_000_000 / 4, 500_000),
    r"n2v2?-bsd68": (200 * 400, 80_000),
    r"noise2same-bsd68": (50_000, 50_000),
    r"r2r-bsd68-.*": (238_400 * 50 / 128, 93_125),
    r"kumar-r2r-gauss.*": (50 * 63, 3_150),
    r"kumar-r2r-polyu": (30 * 18, 540),
    r"(nb2nb|b2u)-gauss25": (100 * 44_328 / 4, 1_108_200),
    r"ee559-seed0": (30 * 50_000 / 4, 375_000),
    r"ee559-seed1": (5 * 50_000 / 4, 62_500),
    r"comp6248-gauss25-.*": (200_000 / 4, 50_000),
    r"comp6248-gauss25_50-.*": (844_000 / 4, 211_000),
    r"restoration-no-clean": (50_000, 50_000),
}


@pytest.fixture(params=sorted(RECIPES))
def recipe(request):
    """Each recipe in turn."""
    return RECIPES[request.param]


def config_of(recipe):
    """Return what a run of the recipe would be configured with."""
    from denoise.config import from_dict

    return from_dict(recipe.config)


def test_a_recipe_says_what_it_is_and_where_its_numbers_come_from(recipe):
    assert re.fullmatch(r"[a-z0-9._-]+", recipe.name)
    assert 20 <= len(recipe.title) <= 120
    assert "\n" not in recipe.title
    assert re.search(r"https://|report", recipe.source)
    assert isinstance(recipe.note, str)


def test_a_recipe_is_complete_and_has_only_keys_of_params_yaml(recipe):
    from denoise.config import Config, flatten, to_dict

    given = set(flatten({**recipe.config, "method": 0, "net": 0}))
    known = set(flatten(to_dict(Config())))
    shape = {f"train.{key}" for key in SHAPES[recipe.config["train"]["schedule"]]}
    assert given == COMPLETE | shape
    assert given <= known
    config_of(recipe)


def test_a_recipe_names_noise_method_schedule_protocol_and_sets_that_exist(recipe):
    from denoise.evaluate import PROTOCOLS
    from denoise.fields import set_and_split
    from denoise.methods import build_method
    from denoise.noise import parse_noise
    from denoise.training.schedules import schedule
    from pipelines.datasets.catalog import data_set
    from pipelines.datasets.hints import COURSE_SETS

    config = config_of(recipe)
    build_method(config.method.name, config.method.fields, parse_noise(config.noise))
    schedule(config.train.schedule)
    assert config.evaluate.protocol in PROTOCOLS
    for split in ("train", "val", "test"):
        for name, named in (set_and_split(reference, split) for reference in getattr(config.data, split)):
            assert name in COURSE_SETS or named in data_set(name).splits


def test_the_network_of_a_recipe_is_built_and_takes_its_crops(recipe):
    import torch

    from denoise.methods import build_method
    from denoise.nets import NetMaker, multiple_of
    from denoise.noise import parse_noise

    config = config_of(recipe)
    method = build_method(config.method.name, config.method.fields, parse_noise(config.noise))
    maker = NetMaker(
        method.net if config.net.name == "auto" else config.net.name, config.data.channels, config.net.fields
    )
    with torch.device("meta"):
        net = method.make_net(maker)
        assert config.train.crop % multiple_of(maker()) == 0
    assert sum(weights.numel() for weights in net.parameters()) > 1000


def test_what_a_source_counts_is_converted_to_steps(recipe):
    (budget,) = [budget for pattern, budget in BUDGETS.items() if re.fullmatch(pattern, recipe.name)]
    counted, steps = budget
    assert recipe.config["train"]["steps"] == counted == steps
    assert f"{steps:,}" in recipe.note


def test_fixed_noise_is_where_the_authors_draw_it_once():
    fixed = {name for name, recipe in RECIPES.items() if recipe.config["data"]["fixed_noise"]}
    assert fixed == {name for name in RECIPES if re.search(r"bsd68|kumar-r2r-gauss", name)}


def test_a_published_figure_is_quoted_as_the_paper_has_it():
    for name, figures in {
        "laine2019-gauss25-ssdn-known": "Kodak 32.45 dB, BSD300 31.03 dB",
        "laine2019-gauss5_50-ssdn-unknown": "Kodak 32.46 dB, BSD300 31.18 dB",
        "lehtinen2018-gauss": "Kodak 32.39 dB, BSD300 31.02 dB",
        "r2r-bsd68-sigma50": "26.13 dB, SSIM 0.709",
        "nb2nb-gauss25": "Kodak 32.08 dB, SSIM 0.879",
    }.items():
        assert figures in RECIPES[name].source


def test_an_unknown_recipe_is_a_user_error_that_names_the_nearest():
    with pytest.raises(UserError, match=r"preset=n2v-bds68 is not known \(did you mean n2v-bsd68\?\)"):
        load_recipe("n2v-bds68")


@pytest.mark.parametrize("name", ["../recipes/n2v-bsd68", "n2v-bsd68.yaml", ""])
def test_a_recipe_is_found_by_its_name_alone(name):
    with pytest.raises(UserError, match="is not known"):
        load_recipe(name)


def test_a_recipe_is_loaded_as_it_is_listed():
    assert names() == sorted(RECIPES)
    assert load_recipe("n2v-bsd68") == RECIPES["n2v-bsd68"]


def test_listing_recipes_imports_nothing_heavy():
    code = "import sys; from pipelines.training.recipes import recipes; recipes(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"torch", "numpy", "ray", "mlflow", "pydantic"} & set(done.stdout.split())


def test_the_page_about_methods_lists_every_recipe():
    page = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    assert {name for name in RECIPES if f"| `{name}` |" not in page} == set()
