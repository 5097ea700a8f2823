"""ray_job.yaml requires a token, holds no password, and uses the versions that the project pins."""

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml
from ray.runtime_env import RuntimeEnv

ROOT = Path(__file__).parents[3]
SECRETS = re.compile(r"password|passwd|secret|token|key_id", re.IGNORECASE)


@pytest.fixture
def spec():
    job = yaml.safe_load((ROOT / "ray_job.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    return job["spec"]


@pytest.fixture
def containers(spec):
    groups = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
    return [container for group in groups for container in group["template"]["spec"]["containers"]]


def test_its_keys_are_those_of_kuberay(spec):
    """The fields that we use of its types RayJobSpec and RayClusterSpec; Kubernetes drops unknown ones silently."""
    assert spec.keys() <= {
        "entrypoint",
        "submissionMode",
        "backoffLimit",
        "shutdownAfterJobFinishes",
        "ttlSecondsAfterFinished",
        "runtimeEnvYAML",
        "rayClusterSpec",
    }
    cluster = spec["rayClusterSpec"]
    assert cluster.keys() <= {
        "rayVersion",
        "authOptions",
        "enableInTreeAutoscaling",
        "autoscalerOptions",
        "headGroupSpec",
        "workerGroupSpecs",
    }
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_it_runs_the_ray_that_is_pinned_in_the_image_of_ray_cluster_yaml(spec, containers):
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)[1]
    cluster = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text(encoding="utf-8"))
    assert spec["rayClusterSpec"]["rayVersion"] == pinned
    assert {container["image"] for container in containers} == {cluster["docker"]["image"]}
    environment = RuntimeEnv(**yaml.safe_load(spec["runtimeEnvYAML"]))
    assert any("constraints.txt" in line for line in environment["pip"]["packages"])


def test_its_command_is_one_of_ours(spec, tmp_path, monkeypatch):
    from pipelines.cli.app import app
    from pipelines.cli.common import configuration
    from pipelines.cluster.jobs import ENTRYPOINT, job_local_settings
    from pipelines.tuning.space import load_sweep

    words = shlex.split(spec["entrypoint"])
    assert tuple(words[:3]) == ENTRYPOINT
    command, sweep, *rest = words[3:]
    settings = [word for word in rest if "=" in word]
    assert "--concurrency" in rest  # how many trials the cluster, which starts without workers, is to grow for
    assert command in typer.main.get_command(app).commands
    monkeypatch.chdir(tmp_path)
    config = configuration(settings, load_sweep(sweep).config)
    assert config.ray.storage.startswith("s3://")
    assert job_local_settings(words[3:], configuration) == []


def test_ray_requires_the_token_and_passwords_come_from_the_secret(spec, containers):
    assert spec["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert not re.search(r"//[^/@]*:[^/@]*@", spec["entrypoint"])
    for container in containers:
        assert container["envFrom"] == [{"secretRef": {"name": "denoise"}}]
        assert not [entry for entry in container["env"] if SECRETS.search(entry["name"])]


def test_the_head_trains_nothing_and_workers_come_and_go(spec):
    cluster = spec["rayClusterSpec"]
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (workers,) = cluster["workerGroupSpecs"]
    assert workers["minReplicas"] == 0 < workers["maxReplicas"]
    (container,) = workers["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert spec["shutdownAfterJobFinishes"]
    assert spec["backoffLimit"] >= 1
