"""The MLflow model of a run: it predicts without this project, and holds no pickle."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import denoise
from denoise.errors import UserError
from pipelines.tracking import client as tracking
from pipelines.tracking import model as logged_model
from pipelines.tracking.runs import RunSpec, get_or_create_run
from tests.pipelines.mlflow_helpers import make_model, shared_uri

PROJECT = Path(denoise.__file__).parents[1]


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return shared_uri(tmp_path_factory)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model") / "model", "gauss25")


PREDICT = """
import importlib.util, json, sys
sys.path[:] = [path for path in sys.path if path not in ("", sys.argv[3])]
assert importlib.util.find_spec("denoise") is None, "the project must be out of reach"
import mlflow.pyfunc, numpy as np
model = mlflow.pyfunc.load_model(sys.argv[1])
noisy = dict(np.load(sys.argv[2]))
np.savez(sys.argv[2], **{name: model.predict(batch) for name, batch in noisy.items()})
try:
    model.predict(np.zeros((1, 3, 8, 8)))
except mlflow.MlflowException:
    pass
else:
    raise SystemExit("float64 went through")
import denoise
assert denoise.__file__.startswith(sys.argv[1]), denoise.__file__
"""


def test_a_logged_model_predicts_without_this_project_and_without_pickle(uri, model, tmp_path, monkeypatch):
    run_id = get_or_create_run(RunSpec(uri, "models", "n2n", params={"train.steps": 10}))
    example = np.random.default_rng(0).random((2, 3, 64, 64), dtype=np.float32)
    model_uri = logged_model.log_model(uri, run_id, model, example, {"psnr": 30.5})
    assert logged_model.log_model(uri, run_id, model, example, {"psnr": 30.5}) == model_uri

    api = tracking.client(uri)
    logged = api.get_logged_model(model_uri.removeprefix("models:/"))
    assert logged.status == "READY"
    assert logged.params["train.steps"] == "10"
    assert [(metric.key, metric.value) for metric in logged.metrics] == [("model/psnr", 30.5)]
    assert [output.model_id for output in api.get_run(run_id).outputs.model_outputs] == [logged.model_id]
    folder = Path(logged.artifact_location.removeprefix("file://"))
    assert not [path.name for path in folder.rglob("*") if path.suffix in {".pkl", ".pt", ".pth", ".bin"}]

    shapes = {"odd": (1, 3, 33, 47), "flat": (2, 3, 1, 70), "even": (1, 3, 64, 32)}
    noisy = {name: np.random.default_rng(1).random(shape, dtype=np.float32) for name, shape in shapes.items()}
    np.savez(tmp_path / "images.npz", **noisy)
    arguments = [str(folder), str(tmp_path / "images.npz"), str(PROJECT)]
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    command = [sys.executable, "-I", "-c", PREDICT, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    restored = dict(np.load(tmp_path / "images.npz"))
    assert {name: batch.shape for name, batch in restored.items()} == shapes
    np.testing.assert_allclose(restored["even"], _restored(model, noisy["even"]), atol=1e-5)


def _restored(model: Path, noisy: np.ndarray) -> np.ndarray:
    import torch

    from denoise.denoiser import load_denoiser

    return load_denoiser(model)(torch.tensor(noisy)).numpy()


def test_a_folder_without_a_model_is_refused(uri, tmp_path):
    run_id = get_or_create_run(RunSpec(uri, "models", "none"))
    with pytest.raises(UserError, match=r"is no model folder: it has no model\.json"):
        logged_model.log_model(uri, run_id, tmp_path, np.zeros((1, 3, 8, 8), np.float32), {})
