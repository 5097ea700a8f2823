"""Commands that are printed to be run next repeat the settings that they need, and no others."""

import shlex

import pytest

from denoise.config import load_config
from pipelines.cli.common import configuration
from pipelines.cli.next_commands import SCORING, TRACKING, line, settings

KEYS = (*SCORING, *TRACKING)


def test_what_params_yaml_says_is_not_repeated(project):
    (project / "params.yaml").write_text("tracking: {uri: 'sqlite:///own.db'}\ndata: {root: elsewhere}\n")
    absolute = [f"data.root={project}/elsewhere", f"tracking.uri=sqlite:///{project}/own.db"]
    assert settings(configuration([*absolute, "train.steps=3"]), KEYS) == []


@pytest.mark.parametrize(
    "setting",
    [
        "data.root=/a folder",
        "data.url=s3://bucket/shards",
        "data.allow_overlap=kodak,own",
        "evaluate.average=true",
        "evaluate.passes=3",
        "evaluate.protocol=uint8",
        "tracking.uri=http://mlflow:5000",
        "tracking.experiment=mine",
    ],
)
def test_a_setting_of_the_command_line_is_repeated_as_a_shell_takes_it(project, setting):
    config = configuration([setting])
    repeated = settings(config, KEYS)
    assert len(repeated) == 2
    words = shlex.split(line("evaluate", *repeated))
    assert load_config(project / "params.yaml", [words[-1]]) == config


def test_a_setting_that_takes_one_of_params_yaml_back_is_repeated(project):
    (project / "params.yaml").write_text("data: {url: 's3://bucket/shards'}\nevaluate: {passes: 3}\n")
    assert settings(configuration(["data.url=null"]), KEYS) == ["-S", "data.url=null"]
