from pathlib import Path

import pytest

from denoise.config import Choice, Config, digest, flatten, from_dict, load_config, to_dict
from denoise.errors import UsageError, UserError
from denoise.methods import with_net

pytestmark = pytest.mark.smoke

PARAMS = Path(__file__).parents[2] / "params.yaml"


def test_params_yaml_shows_every_key_with_its_default():
    import yaml

    assert load_config(PARAMS) == Config()
    written = yaml.safe_load(PARAMS.read_text())
    assert set(flatten(written)) == set(flatten(to_dict(Config())))


def test_without_a_file_the_defaults_hold(tmp_path):
    assert load_config(tmp_path / "params.yaml") == load_config(None) == Config()


def test_overrides_are_converted():
    config = load_config(None, ["train.lr=3e-4", "data.train=bsds300,imagenet", "train.steps=20", "data.mirror=/mnt"])
    assert (config.train.lr, config.data.train, config.train.steps) == (3e-4, ("bsds300", "imagenet"), 20)
    assert config.data.mirror == "/mnt"
    assert load_config(None, ["data.test=[kodak, bsd68/train]"]).data.test == ("kodak", "bsd68/train")


def test_a_method_is_a_name_with_fields():
    assert load_config(None, ["method=n2c", "method.loss_name=l1"]).method == Choice("n2c", {"loss_name": "l1"})


def test_fields_do_not_outlive_their_method(tmp_path):
    (tmp_path / "params.yaml").write_text("method: {name: n2n, loss_name: l1}\n")
    assert load_config(tmp_path / "params.yaml").method == Choice("n2n", {"loss_name": "l1"})
    assert load_config(tmp_path / "params.yaml", ["method=n2c"]).method == Choice("n2c")
    assert load_config(tmp_path / "params.yaml", ["method=n2n"]).method.fields == {"loss_name": "l1"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trian.steps=3", "did you mean train.steps"),
        ("train.step=3", "did you mean train.steps"),
        ("train.steps=abc", "invalid value 'abc' for train.steps: input should be a valid integer"),
        ("train.steps=0", "greater than or equal to 1"),
        ("train.rampup=2", "less than or equal to 1"),
        ("train.precision=fp8", "'auto', 'fp32' or 'bf16'"),
        ("train.lr=-1", "greater than 0"),
        ("steps", "KEY=VALUE"),
        ("data=3", "data is not a key"),
        ("data.val=bsds300/tests", "'tests' is no split: write bsds300/train, bsds300/val or bsds300/test"),
        ("data.test=../x/test", "cannot be a name"),
        ("data.train=a/b/test", "is no split"),
        ("data.allow_overlap=kodak/test", "cannot be a name"),
        ("data.noise_patch=33", "less than or equal to 32"),
    ],
)
def test_a_wrong_override_is_refused_in_one_sentence(override, message):
    with pytest.raises(UsageError) as caught:
        load_config(None, [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {stps: 3}", "train.stps is not a key (did you mean steps?)"),
        ("sed: 1", "did you mean seed"),
        ("train: 3", "train should hold keys"),
        ("- a", "should hold keys and values"),
        ("train: {steps: [", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence(tmp_path, text, message):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(tmp_path / "params.yaml")
    assert message in str(caught.value)


def test_yes_and_no_stay_words(tmp_path):
    (tmp_path / "params.yaml").write_text("ray: {gpu: yes}\n")
    assert load_config(tmp_path / "params.yaml").ray.gpu == "yes"
    assert load_config(None, ["ray.gpu=no"]).ray.gpu == "no"


def test_plain_data_goes_there_and_back():
    config = load_config(None, ["method=n2c", "method.loss_name=l1", "data.test=kodak"])
    assert from_dict(to_dict(config)) == config
    assert flatten(to_dict(config))["method"] == "n2c"
    assert flatten(to_dict(config))["method.loss_name"] == "l1"


def test_the_digest_ignores_the_order_of_keys():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1}) != digest({"a": 1, "b": [2, 1]})


@pytest.mark.parametrize("workers", ["0", "-1", "1.5", "lots", "true", "null"])
def test_a_number_of_workers_that_is_none_is_refused_in_one_sentence(workers):
    with pytest.raises(UsageError, match=r"^invalid value .* for ray\.workers: it should be auto, or a whole number"):
        load_config(None, [f"ray.workers={workers}"])


def test_the_number_of_workers_is_auto_or_a_number():
    assert load_config().ray.workers == load_config(None, ["ray.workers=auto"]).ray.workers == "auto"
    assert load_config(None, ["ray.workers=3"]).ray.worker_count == 3
    with pytest.raises(ValueError, match="no number before the cluster is known"):
        load_config().ray.worker_count  # noqa: B018


@pytest.mark.parametrize("crop", ["0", "32769", "1.5", "large", "true"])
def test_a_crop_that_is_none_is_refused_in_one_sentence(crop):
    with pytest.raises(UsageError, match=r"^invalid value .* for train\.crop: it should be "):
        load_config(None, [f"train.crop={crop}"])


@pytest.mark.parametrize(
    ("overrides", "crop"),
    [
        ([], 64),
        (["method=ssdn"], 128),
        (["method=ssdn", "method.mu_only=true"], 128),
        (["method=ssdn", "train.crop=96"], 96),
        (["method=n2c", "net=unet_ssdn"], 64),  # without its blind spot
        (["method=bm3d"], 64),
    ],
)
def test_a_crop_is_settled_by_method_and_net(overrides, crop):
    config = with_net(load_config(None, overrides))
    assert config.train.crop_pixels == crop
    assert with_net(config) == config
    if len(overrides) < 2:
        with pytest.raises(ValueError, match="no number before the net is known"):
            load_config(None, overrides).train.crop_pixels  # noqa: B018
