"""The identity of a run: what makes another run of it, and what does not."""

import pytest

from denoise.config import load_config
from pipelines.training.identity import run_name


def name(*overrides, data="data"):
    return run_name(load_config(None, overrides), data)


def test_a_name_says_method_and_noise():
    assert name("method=n2c", "noise=gauss5_50").startswith("n2c-gauss5_50-")
    assert name() == name()


@pytest.mark.parametrize(
    "override", ["seed=1", "noise=gauss50", "method=n2c", "method.loss_name=l1", "train.lr=2e-3", "data.colour=grey"]
)
def test_what_decides_the_weights_makes_another_run(override):
    assert name(override) != name()


def test_other_images_make_another_run():
    assert name(data="others") != name()


ELSEWHERE = ["ray.workers=8", "ray.storage=s3://b/r", "tracking.uri=http://h:1", "evaluate.protocol=laine2019"]


@pytest.mark.parametrize("override", ELSEWHERE)
def test_where_it_runs_does_not(override):
    assert name(override) == name()


def test_the_code_of_the_chosen_method_counts_and_of_others_does_not():
    from pipelines.training.identity import code_files

    files = {
        method: {path.name for path in code_files(load_config(None, [f"method={method}"]))} for method in ("n2c", "n2n")
    }
    assert files["n2c"] ^ files["n2n"] == {"noise2clean.py", "noise2noise.py"}
    assert {"train.py", "rng.py", "base.py", "unet.py"} <= files["n2c"]
    assert not {"restore.py", "evaluate.py"} & files["n2c"]
