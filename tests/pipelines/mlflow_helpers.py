"""What the tests of MLflow share."""

import os
import signal
import socket
import subprocess
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from pipelines.tracking import client as tracking
from pipelines.tracking import model as logged_model
from pipelines.tracking.runs import RunSpec, get_or_create_run
from pipelines.tracking.server import start_server, stop_server, wait_until_up

LEVELS = count(1001)


def shared_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for a whole test run, since creating it takes seconds; each test uses names of its own in it."""
    return tracking.resolve_uri("sqlite:///mlflow.db", tmp_path_factory.getbasetemp() / "mlflow")


def make_model(folder: Path, noise: str, seed: int = 0, channels: int = 3) -> Path:
    """Return a model folder: the U-Net, untrained; another seed gives another sha256."""
    import torch

    from denoise.denoiser import make_card, save_model
    from denoise.nets import NetMaker

    torch.manual_seed(seed)
    config = {"method": {"name": "n2n", "fields": {}}, "net": {"name": "unet_n2n", "fields": {}}, "noise": noise}
    save_model(folder, NetMaker("unet_n2n", channels, {})(), make_card(config, channels, steps=10))
    return folder


def log_a_model(uri: str, folder: Path, noise: str, seed: int = 0, channels: int = 3) -> tuple[str, Path]:
    """Return (run id, model folder) of a finished run that has logged a model."""
    model = make_model(folder / f"{noise}-{seed}", noise, seed, channels)
    experiment = "helpers over http" if uri.startswith("http") else "helpers"
    run_id = get_or_create_run(RunSpec(uri, experiment, f"{noise}-{seed}"))
    example = np.random.default_rng(0).random((1, channels, 40, 40), dtype=np.float32)
    logged_model.log_model(uri, run_id, model, example, {})
    tracking.finish_run(uri, run_id, "FINISHED")
    return run_id, model


def scores(model: Path, psnr: float, **others: object) -> dict[str, object]:
    """Return what an evaluation of a model folder writes, of one image."""
    from denoise.denoiser import load_denoiser

    denoiser = load_denoiser(model)
    figures = {"noisy_psnr": 20.2, "psnr": psnr, "noisy_ssim": 0.4, "ssim": 0.8}
    figures |= {key: others.pop(key) for key in figures.keys() & others.keys()}
    setting = {"noise": denoiser.noise, "data": "samples", "protocol": "float", "data_digest": "d1"}
    counts = {"channels": denoiser.channels, "passes": 1, "averaged_over": 1}
    identity = {"method": denoiser.name, "model_sha256": denoiser.digest}
    return {**identity, **setting, **counts, **figures, "images": [{"name": "a.png", **figures}], **others}


def new_noise() -> str:
    """Return a noise that no other test's models were trained for, so that their registered name is the test's own."""
    return f"gauss{next(LEVELS) / 100:.2f}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A real MLflow server of a database: not there until it is started; it can be killed and started again."""

    def __init__(self, uri: str) -> None:
        self.uri, self.port = uri, free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = start_server(self.uri, self.port)
        wait_until_up(self.process, "127.0.0.1", self.port)

    def signal(self, sign: signal.Signals) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, sign)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait()
        self.process = None

    def stop(self) -> None:
        if self.process is not None:
            self.signal(signal.SIGCONT)
            stop_server(self.process)


def history(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    """Return (step, value) of a run's metric, in the order of MLflow."""
    return [(entry.step, entry.value) for entry in tracking.client(uri).get_metric_history(run_id, key)]


def images(uri: str, run_id: str) -> list[str]:
    """Return the names of the files of a run's images."""
    return sorted(Path(file.path).name for file in tracking.client(uri).list_artifacts(run_id, "images"))


def runs_named(uri: str, experiment: str, name: str) -> list[str]:
    """Return the ids of all runs of that logical name: there should be one."""
    api = tracking.client(uri)
    found = api.search_runs([api.get_experiment_by_name(experiment).experiment_id], f"tags.`denoise.run` = '{name}'")
    return [run.info.run_id for run in found]
