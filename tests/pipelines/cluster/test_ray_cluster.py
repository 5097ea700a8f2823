"""ray_cluster.yaml fits the schema of the pinned Ray, and requires a token."""

import re
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import fillout_defaults, validate_config

ROOT = Path(__file__).parents[3]


@pytest.fixture
def cluster():
    return yaml.safe_load((ROOT / "ray_cluster.yaml").read_text(encoding="utf-8"))


def test_it_fits_the_schema_of_ray(cluster):
    filled = fillout_defaults(cluster)
    validate_config(filled)
    assert filled["available_node_types"].keys() == cluster["available_node_types"].keys()


def test_the_schema_rejects_an_unknown_key(cluster):
    from jsonschema import ValidationError

    cluster["head_node_typ"] = cluster.pop("head_node_type")
    with pytest.raises(ValidationError, match="head_node_typ"):
        validate_config({**fillout_defaults({"provider": cluster["provider"]}), **cluster})


def test_every_host_has_the_ray_that_is_pinned(cluster):
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)[1]
    assert cluster["docker"]["image"].startswith(f"rayproject/ray:{pinned}-py311")
    assert any("--constraint constraints.txt" in command for command in cluster["setup_commands"])


def test_ray_requires_the_token_on_every_host(cluster):
    for kind in ("head", "worker"):
        (start,) = [command for command in cluster[f"{kind}_start_ray_commands"] if "ray start" in command]
        assert "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$HOME/.ray/auth_token" in start
    (head,) = [command for command in cluster["head_start_ray_commands"] if "ray start" in command]
    assert "--dashboard-host=127.0.0.1" in head
    assert "/home/ray/.ray/auth_token" in cluster["file_mounts"]


def test_the_head_stays_and_workers_come_and_go(cluster):
    head, worker = (cluster["available_node_types"][name] for name in ("head", "gpu"))
    assert cluster["head_node_type"] == "head"
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"]["CPU"] == 0
    assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert worker["min_workers"] == 0 < worker["max_workers"] <= cluster["max_workers"]
