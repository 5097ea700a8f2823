"""What the tests of MLflow share."""

import socket
from pathlib import Path

import numpy as np
import pytest

from pipelines import logged_model, tracking


def shared_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for a whole test run, since creating it takes seconds; each test uses names of its own in it."""
    return tracking.resolve_uri("sqlite:///mlflow.db", tmp_path_factory.getbasetemp() / "mlflow")


def make_model(folder: Path, noise: str, seed: int = 0) -> Path:
    """Return a model folder: the U-Net, untrained; another seed gives another sha256."""
    import torch

    from denoise.checkpoint import make_card, save_model
    from denoise.nets import NetMaker

    torch.manual_seed(seed)
    config = {"method": {"name": "n2n", "fields": {}}, "net": {"name": "unet_n2n", "fields": {}}, "noise": noise}
    save_model(folder, NetMaker("unet_n2n", 3, {})(), make_card(config, 3, steps=10))
    return folder


def log_a_model(uri: str, folder: Path, noise: str, seed: int = 0) -> tuple[str, Path]:
    """Return (run id, model folder) of a finished run that has logged a model."""
    model = make_model(folder / f"{noise}-{seed}", noise, seed)
    experiment = "helpers over http" if uri.startswith("http") else "helpers"
    run_id = tracking.open_run(uri, experiment, f"{noise}-{seed}")
    example = np.random.default_rng(0).random((1, 3, 40, 40), dtype=np.float32)
    logged_model.log_model(uri, run_id, model, example, {})
    tracking.finish_run(uri, run_id, "FINISHED")
    return run_id, model


def scores(psnr: float, **others: object) -> dict[str, object]:
    """Return what an evaluation writes."""
    figures = {"noisy_psnr": 20.2, "psnr": psnr, "noisy_ssim": 0.4, "ssim": 0.8}
    return {"method": "n2n", "data": "samples", "protocol": "float", "data_digest": "d1", **figures, **others}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
