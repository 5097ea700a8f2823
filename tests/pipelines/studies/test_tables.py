"""The installed studies: every row of every budget is a configuration that can be trained on sets that exist."""

import re
import shlex
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from denoise.config import flatten, from_dict, to_dict
from denoise.fields import set_and_split
from denoise.methods import METHODS, build_method, with_net
from denoise.noise import parse_noise
from denoise.training.setup import build_components
from pipelines.datasets.catalog import SETS
from pipelines.datasets.hints import COURSE_SETS
from pipelines.studies.definition import BUDGETS, load_study, names
from pipelines.studies.plan import row_config
from pipelines.training.recipes import load_recipe

ROOT = Path(__file__).parents[3]
NAMES = names()
STUDIES = {name: load_study(name) for name in NAMES}
# The reports show curves or images there, or say it in words; or a measurement of our own.
WITHOUT_FIGURES = {
    *("crop-and-border", "ee559-schedule", "ee559-search", "n2n-four-noises"),
    *("r2r-cnn5", "r2r-passes", "r2r-sigma-error", "r2r-tiles", "ssdn-clipping"),
}
OTHER_COLUMNS = {"average", "set14", "one image", *(f"epoch {number}" for number in range(1, 6))}
# Every value of these would change the results of any study that leaves the key to params.yaml.
CHANGED_PARAMS = {
    "noise": "gauss7",
    "method": "n2s",
    "net": "cnn5",
    "data": {"train": ["mine"], "val": ["mine"], "test": ["mine"], "colour": "grey", "min_side": 7, "max_side": 9},
    "train": {"batch_size": 77, "crop": 224, "lr": 7.0, "optimizer": "sgd", "betas": [0.7, 0.7], "weight_decay": 0.7},
    "evaluate": {"protocol": "uint8", "passes": 7, "average": True},
}
CHANGED_PARAMS["train"] |= {"schedule": "decay", "augment": ["flip"], "ema": 0.7, "steps": 777, "val_images": 77}


@cache
def configs(name, budget, stand_in=False, params=None):
    """Return (row, configuration) of every row of a study."""
    study = STUDIES[name]
    return [(row, row_config(study, row, budget, stand_in=stand_in, params=params)) for row in study.all_rows()]


def splits_of(study, name):
    """Return the splits that a set has: of the catalogue, of a course's files, or derived by the study."""
    if name in study.sets:
        derived = study.sets[name]
        return (derived.split, *(["val"] if derived.val_share else []))
    return SETS[name].splits if name in SETS else ("train", "val") if name in COURSE_SETS else ()


def what_is_trained(config):
    """Return what of a configuration decides its weights and curves."""
    data = {key: value for key, value in to_dict(config)["data"].items() if key != "test"}
    return config.noise, config.method, config.net, config.train, data


def test_there_is_a_study_for_every_published_table():
    assert len(NAMES) == 23
    assert {name for name in NAMES if not any(row.published for row in STUDIES[name].rows)} == WITHOUT_FIGURES
    assert all(set(study.budgets) == set(BUDGETS) for study in STUDIES.values())
    assert all(study.title and study.source and study.note for study in STUDIES.values())
    assert all(study.hold.get("smoke") or study.hold.get("always") for study in STUDIES.values())


@pytest.mark.parametrize("name", NAMES)
def test_every_row_can_be_trained(name):
    seen = []
    for budget in BUDGETS:
        for row, config in configs(name, budget, stand_in=True):
            family = config.noise.rstrip("0123456789._")
            key = (family, config.method, config.net, config.train.crop, config.train.schedule)
            if METHODS[config.method.name].trained and key not in seen:
                seen.append(key)
                build_components(config)
                assert config.train.crop != "auto", row.name
            build_method(config.method.name, config.method.fields, parse_noise(config.evaluate.noise or config.noise))


@pytest.mark.parametrize("name", NAMES)
def test_sets_exist_and_published_figures_are_of_columns_that_are_scored(name):
    study = STUDIES[name]
    for stand_in in {False, study.stand_in is not None}:
        for row, config in configs(name, "paper", stand_in=stand_in):
            for role in ("train", "val", "test"):
                for reference in getattr(config.data, role):
                    data, split = set_and_split(reference, role)
                    assert split in splits_of(study, data), (row.name, reference)
            columns = {column for figures in row.published.values() for column in figures}
            assert stand_in or columns <= {*config.data.test, *OTHER_COLUMNS}
    assert {column for row in study.rows for column in row.published} == set(study.sources)


@pytest.mark.parametrize("name", NAMES)
def test_params_yaml_changes_no_result(name, tmp_path):
    params = tmp_path / "params.yaml"
    params.write_text(yaml.safe_dump(CHANGED_PARAMS))
    keys = set(flatten(CHANGED_PARAMS))
    plain, changed = (
        [(row.name, flatten(to_dict(config))) for row, config in configs(name, "paper", params=file)]
        for file in (None, params)
    )
    for (row, before), (_, after) in zip(plain, changed, strict=True):
        trained = METHODS[before["method"]].trained
        leaked = {key for key in keys if before[key] != after[key]}
        assert not leaked or (not trained and leaked == {"net"}), (row, leaked)


@pytest.mark.parametrize("budget", BUDGETS)
def test_studies_that_score_one_model_train_it_in_the_same_way(budget):
    model = {name: {row.name: config for row, config in configs(name, budget)} for name in NAMES if "r2r" in name}
    for sigma in (25, 50):
        trained = what_is_trained(model["r2r-awgn"][f"sigma {sigma}"])
        others = [model["r2r-sigma-error"][f"sigma {sigma}, told {sigma * share:g}"] for share in (0.9, 1, 1.1)]
        if sigma == 25:
            others += [*model["r2r-passes"].values(), model["r2r-cnn5"]["dncnn"], model["r2r-awgn"]["sigma 25, 1 pass"]]
            others += [model["r2r-tiles"][row] for row in ("whole", "tiles of 40", "tiles of 80", "tiles of 160")]
        assert [what_is_trained(other) for other in others] == [trained] * len(others)


@pytest.mark.parametrize(
    ("preset", "study", "row"),
    [
        ("comp6248-gauss25-n2c", "ssdn-table1", "N2C"),
        ("comp6248-gauss25-n2v", "ssdn-table1", "N2V"),
        ("comp6248-gauss25-mu-only", "ssdn-table1", "SSDN mu only"),
        ("comp6248-gauss25-ssdn-unknown", "ssdn-table1", "SSDN unknown"),
        ("comp6248-gauss25_50-ssdn-unknown", "ssdn-variable", "variable"),
        ("ee559-seed0", "ee559-backbone", "U-Net"),
        ("ee559-seed1", "ee559-criterion", "L0"),
        ("kumar-r2r-gauss50", "r2r-awgn", "sigma 50, report's recipe"),
        ("kumar-r2r-polyu", "r2r-polyu", "as written"),
        ("r2r-bsd68-sigma25", "r2r-awgn", "sigma 25"),
        ("n2v-bsd68", "n2v-bsd68", "N2V"),
        ("nb2nb-gauss25", "nb2nb-table1", "Nb2Nb"),
        ("lehtinen2018-gauss-red30", "lehtinen2018-table1", "N2N, Gauss"),
    ],
)
def test_a_preset_and_the_study_of_its_table_train_alike(preset, study, row):
    alone, in_study = with_net(from_dict(load_recipe(preset).config)), dict_of(study)[row]
    assert alone.noise == in_study.noise
    assert built_method(alone) == built_method(in_study)
    assert alone.net == in_study.net
    keys = load_recipe(preset).config["train"].keys() - {"log_every", "eval_every", "checkpoint_every"}
    assert {key: getattr(alone.train, key) for key in keys} == {key: getattr(in_study.train, key) for key in keys}


def built_method(config):
    """Return the method that a configuration names, with all its fields."""
    return build_method(config.method.name, config.method.fields, parse_noise(config.noise))


def dict_of(study):
    """Return the configurations of a study's rows in the budget "paper", by row."""
    return {row.name: with_net(config) for row, config in configs(study, "paper")}


def test_the_page_about_the_reports_names_every_study_and_rows_that_exist():
    page = (ROOT / "docs/reports.md").read_text(encoding="utf-8")
    named = set()
    for command in re.findall(r"`denoise study run ([^`]+)`", page):
        name, *words = shlex.split(command)
        rows = [word for option, word in pairwise(words) if option == "--rows"]
        named.add(name)
        assert set(rows) <= {row.name for row in STUDIES[name].all_rows()}
    assert named == set(NAMES)
