"""System metrics of this machine, by MLflow's monitors: CPU, memory, disk, network, GPU."""

from contextlib import suppress
from typing import Any

from pipelines.tracking.client import set_environment


class SystemMetrics:
    """MLflow's monitors without its thread, which needs an open run and gives up at the first failed request."""

    def __init__(self) -> None:
        set_environment()
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
        from mlflow.system_metrics.metrics.rocm_monitor import ROCMMonitor

        host_monitors: list[Any] = [CPUMonitor, DiskMonitor, NetworkMonitor]  # Any: MLflow does not type them
        gpu_monitors: list[Any] = [GPUMonitor, ROCMMonitor]
        self._monitors = [monitor() for monitor in host_monitors]
        for monitor in gpu_monitors:
            with suppress(Exception):  # whatever a missing GPU or driver raises
                self._monitors.append(monitor())
                break

    def sample(self) -> dict[str, float]:
        """Return the current values by MLflow's names for system metrics (``system/...``)."""
        metrics: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            metrics |= {f"system/{key}": value for key, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return metrics
