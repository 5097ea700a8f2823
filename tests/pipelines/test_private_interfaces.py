"""What we use of MLflow and Ray beside their public interfaces: when a new version drops it, a test says so by name."""

import importlib
from importlib import metadata
from operator import attrgetter

import pytest

USES = [
    ("mlflow", "mlflow.store.db.utils", "_initialize_tables", "tracking/client.py"),
    ("mlflow", "mlflow.tracking._tracking_service.utils", "_artifact_repos_cache", "tracking/client.py"),
    ("mlflow", "mlflow.tracking.multimedia", "convert_to_pil_image", "tracking/run_images.py"),
    ("mlflow", "mlflow.system_metrics.metrics.cpu_monitor", "CPUMonitor.collect_metrics", "tracking/system_metrics.py"),
    ("ray", "ray._private.utils", "get_entrypoint_name", "cluster/connect.py"),
    ("ray", "ray.tune.execution.class_cache", "ENV_VARS_TO_PROPAGATE", "training/side_by_side.py"),
    ("ray", "ray.train._internal.session", "get_session", "training/side_by_side.py"),
    ("ray", "ray.train._internal.session", "_TrainSession.finish", "training/side_by_side.py"),
    ("ray", "ray.train.torch", "TorchTrainer._create_default_callbacks", "training/on_ray.py"),
    ("ray", "ray.train.v2._internal.callbacks", "DatasetsCallback", "training/on_ray.py"),
    (
        *("ray", "ray.train.v2._internal.callbacks.placement_group_callback", "PlacementGroupCleanerCallback"),
        "training/on_ray.py",
    ),
    ("ray", "ray._private.runtime_env.packaging", "create_package", "cluster/package.py"),
    ("ray", "ray.core.generated.gcs_service_pb2", "CheckAliveRequest", "cluster/auth.py"),
    ("ray", "ray.core.generated.gcs_service_pb2_grpc", "NodeInfoGcsServiceStub", "cluster/auth.py"),
    ("ray", "ray.core.generated.gcs_service_pb2_grpc", "NodeInfoGcsServiceServicer.CheckAlive", "cluster/auth.py"),
]


@pytest.mark.parametrize(("package", "module", "name", "user"), USES)
def test_the_installed_version_has_what_we_use(package, module, name, user):
    try:
        attrgetter(name)(importlib.import_module(module))
    except (ImportError, AttributeError) as error:
        pytest.fail(f"{package} {metadata.version(package)} has no {module}.{name}, which {user} uses ({error})")
