"""The load of this machine, as MLflow's own probes measure it: CPU, memory, disk, network, GPU."""

from contextlib import suppress
from typing import Any

from pipelines.tracking.client import set_environment


class SystemMetrics:
    """MLflow's probes without its thread, which gives up at the first request that fails and needs a run to start."""

    def __init__(self) -> None:
        set_environment()
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
        from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

        machine: list[Any] = [CPUMonitor, DiskMonitor, NetworkMonitor]  # Any: MLflow's have no types
        gpus: list[Any] = [GPUMonitor, ROCMMonitor]
        self._probes = [probe() for probe in machine]
        for gpu in gpus:
            with suppress(Exception):  # whatever a missing GPU or driver raises
                self._probes.append(gpu())
                break

    def sample(self) -> dict[str, float]:
        """Return the load by the names that MLflow shows on a page of its own."""
        found: dict[str, float] = {}
        for probe in self._probes:
            probe.collect_metrics()
            found |= {f"system/{key}": value for key, value in probe.aggregate_metrics().items()}
            probe.clear_metrics()
        return found
