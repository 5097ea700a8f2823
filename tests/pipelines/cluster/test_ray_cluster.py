"""ray_cluster.yaml and ray_cluster_local.yaml fit the schema of the pinned Ray, and require a token."""

import re
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[3]
CODE = {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "denoise", "pipelines"}  # what pip installs


def read(name):
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


@pytest.fixture
def cloud():
    return read("ray_cluster.yaml")


@pytest.fixture(params=["ray_cluster.yaml", "ray_cluster_local.yaml"])
def cluster(request):
    return read(request.param)


def start_command(cluster, kind):
    (start,) = [command for command in cluster[f"{kind}_start_ray_commands"] if "ray start" in command]
    return start


def test_it_fits_the_schema_of_ray(cluster):
    filled = prepare_config(cluster)
    validate_config(filled)
    for section in set(cluster) - {"available_node_types", "setup_commands"}:  # Ray fills in the resources of a type
        assert filled[section] == cluster[section]


def test_the_schema_rejects_an_unknown_key(cluster):
    from jsonschema import ValidationError

    filled = prepare_config(cluster)
    filled["head_node_typ"] = filled.pop("head_node_type")
    with pytest.raises(ValidationError, match="head_node_typ"):
        validate_config(filled)


def test_every_host_has_the_ray_that_is_pinned(cluster, cloud):
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)[1]
    assert cloud["docker"]["image"].startswith(f"rayproject/ray:{pinned}-py311")
    assert any("--constraint constraints.txt" in command for command in cluster["setup_commands"])


def test_the_token_and_what_pip_installs_are_sent_and_nothing_else(cluster):
    sent = cluster["file_mounts"]
    assert set(sent.values()) - {"params.yaml"} == {*CODE, "~/.ray/auth_token"}
    assert all((ROOT / path).exists() for path in CODE)
    assert all(to.endswith(path.removeprefix("~")) for to, path in sent.items())
    assert cluster["rsync_exclude"] == ["__pycache__/"]  # "auth_token" or "*.pem" here would keep those from the hosts


def test_ray_requires_the_token_on_every_host(cluster):
    setting = "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$HOME/.ray/auth_token"
    at_login = any(setting in command and ">> ~/.bashrc" in command for command in cluster["setup_commands"])
    assert at_login  # for the commands that `ray exec`, `ray down` and people give
    assert "--dashboard-host=127.0.0.1" in start_command(cluster, "head")


def test_a_container_starts_ray_with_the_token(cloud):
    for kind in ("head", "worker"):
        assert "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$HOME/.ray/auth_token" in start_command(cloud, kind)


def test_the_head_stays_and_workers_come_and_go(cloud):
    head, worker = (cloud["available_node_types"][name] for name in ("head", "gpu"))
    assert cloud["head_node_type"] == "head"
    assert "InstanceMarketOptions" not in head["node_config"]
    assert head["resources"]["CPU"] == 0
    assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert worker["min_workers"] == 0 < worker["max_workers"] <= cloud["max_workers"]


def test_one_s_own_machines_are_all_started_by_the_autoscaler_that_counts_them_right():
    local = read("ray_cluster_local.yaml")
    assert "RAY_enable_autoscaler_v2=0 ray start" in start_command(local, "head")
    (kind,) = prepare_config(local)["available_node_types"].values()
    assert kind["min_workers"] == kind["max_workers"] == len(local["provider"]["worker_ips"])
