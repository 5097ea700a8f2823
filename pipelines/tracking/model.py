"""A denoiser as the MLflow model of a run: pyfunc from code, JSON and safetensors, without pickle."""

import hashlib
import shutil
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import denoise
from denoise.errors import UserError
from denoise.files import file_digest
from denoise.model_files import model_digest, model_files
from pipelines.tracking.client import RUN_TAG, client, plain_errors

if TYPE_CHECKING:
    import numpy as np
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

DIGEST_TAG = "model_sha256"  # of the model folder
FOLDER_TAG = "folder_sha256"  # of all files of the logged model, which are code, too
# Packages that the copy of denoise inside a logged model imports.
REQUIREMENTS = ("mlflow", "torch", "numpy", "safetensors", "pydantic", "pyyaml", "pillow")
EXAMPLE_SIDE = 32  # pixels of the input example that is stored with a model


def folder_digest(root: Path) -> str:
    """Return the sha256 (hex) of a logged model: of the paths and contents of all its files, whatever they are.

    Only ``__pycache__`` is left out, which Python writes beside code that it runs: ``copy_logged_model`` leaves it out.
    """
    lines = [f"{path.relative_to(root).as_posix()}\0{_content(path)}\n" for path in _logged_files(root)]
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def copy_logged_model(root: Path, target: Path) -> None:
    """Copy the files that ``folder_digest`` counts into ``target``, a new folder."""
    for path in _logged_files(root):
        copy = target / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def log_model(
    uri: str, run_id: str, model_folder: Path, input_example: "np.ndarray[Any, Any]", metrics: Mapping[str, float]
) -> str:
    """Log a model folder as the run's MLflow model and return its uri ``models:/m-...``.

    The model is pyfunc from code (pyfunc_model.py and a copy of the package ``denoise``): nothing in it is a pickle,
    and it loads where this project is not installed. A folder that the run has already logged is not logged again,
    unless that was by a version that did not record the digest of all files.

    Args:
        uri: absolute tracking uri.
        run_id: the run that trained the model.
        model_folder: holds model.json and net.safetensors.
        input_example: noisy batch (B, C, H, W), float32 in [0, 1]; a 32x32 corner of the first image is stored.
        metrics: of this model, logged as ``model/KEY``.
    """
    digest = model_digest(model_folder)
    api = client(uri)
    with plain_errors(uri):
        run = api.get_run(run_id)
        logged = find_logged_model(api, run, digest)
        if logged is None:
            tags = {DIGEST_TAG: digest, RUN_TAG: run.data.tags.get(RUN_TAG, "")}
            logged = api.create_logged_model(
                run.info.experiment_id, "denoiser", run_id, tags, run.data.params, model_type="denoiser"
            )
            _upload_model(api, logged, run_id, model_folder, input_example)
            _log_model_metrics(api, logged, run_id, metrics)
    return f"models:/{logged.model_id}"


def find_logged_model(api: "MlflowClient", run: "Run", digest: str) -> "LoggedModel | None":
    """Return the complete (READY) model with that digest that the run has logged with all its files', or None."""
    outputs = run.outputs.model_outputs if run.outputs else []
    for output in outputs:
        logged = api.get_logged_model(output.model_id)
        if logged.status == "READY" and logged.tags.get(DIGEST_TAG) == digest and FOLDER_TAG in logged.tags:
            return logged
    return None


def denoiser_folder(root: Path) -> Path:
    """Return the model folder (model.json, net.safetensors) inside a logged model."""
    return root / "artifacts" / "denoiser"


def logged_model_folder(uri: str, logged: "LoggedModel", work: Path) -> Path:
    """Return the folder of a logged model: in place if it is on this machine, otherwise downloaded into ``work``.

    Raises:
        UserError: the folder should be on this machine and is not there.
    """
    import mlflow.artifacts

    location = logged.artifact_location
    if location.startswith(("/", "file:")):
        # A plain path may hold # and %, which mean something in an address only.
        folder = Path(unquote(urlsplit(location).path) if location.startswith("file:") else location)
        if not (folder / "MLmodel").is_file():
            raise UserError(f"the files of the model {logged.model_id} are gone from {folder}.")
        return folder
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=location, dst_path=str(work), tracking_uri=uri))


def _upload_model(
    api: "MlflowClient", logged: "LoggedModel", run_id: str, model_folder: Path, input_example: "np.ndarray[Any, Any]"
) -> None:
    """Build the MLflow model in a temporary folder, upload it, and mark it READY, or FAILED if anything went wrong."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    status = LoggedModelStatus.FAILED
    try:
        with tempfile.TemporaryDirectory() as work:
            staged = Path(work) / "denoiser"  # MLflow keeps this name
            staged.mkdir()
            for file in model_files(model_folder):
                shutil.copyfile(file, staged / file.name)
            _save_pyfunc(Path(work) / "model", logged, staged, input_example)
            api.set_logged_model_tags(logged.model_id, {FOLDER_TAG: folder_digest(Path(work) / "model")})
            api.log_model_artifacts(logged.model_id, str(Path(work) / "model"))
        status = LoggedModelStatus.READY
    finally:
        api.finalize_logged_model(logged.model_id, status)
    api.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])


def _save_pyfunc(
    target: Path, logged: "LoggedModel", model_folder: Path, input_example: "np.ndarray[Any, Any]"
) -> None:
    import mlflow.pyfunc
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    example = np.ascontiguousarray(input_example[:1, :, :EXAMPLE_SIDE, :EXAMPLE_SIDE], dtype=np.float32)
    images = Schema([TensorSpec(np.dtype(np.float32), (-1, example.shape[1], -1, -1))])
    run_id, model_id = logged.source_run_id, logged.model_id
    mlflow.pyfunc.save_model(
        path=str(target),
        python_model=str(Path(__file__).with_name("pyfunc_model.py")),
        artifacts={"denoiser": str(model_folder)},
        code_paths=[str(Path(denoise.__file__).parent)],
        pip_requirements=[f"{name}=={version(name).partition('+')[0]}" for name in REQUIREMENTS],
        signature=ModelSignature(inputs=images, outputs=images),
        input_example=example,
        mlflow_model=Model(logged.artifact_location, run_id, model_id=model_id, model_uuid=model_id),
    )


def _log_model_metrics(api: "MlflowClient", logged: "LoggedModel", run_id: str, metrics: Mapping[str, float]) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    entries = [Metric(f"model/{key}", float(value), now, 0, logged.model_id) for key, value in metrics.items()]
    api.log_batch(run_id, metrics=entries)


def _logged_files(root: Path) -> list[Path]:
    """Return all paths below a logged model but folders, sorted; a link is a file, whatever it points to."""
    paths = [path for path in root.rglob("*") if path.is_symlink() or not path.is_dir()]
    return sorted(path for path in paths if "__pycache__" not in path.relative_to(root).parts)


def _content(path: Path) -> str:
    """Return the sha256 of a file's bytes; of anything else, such as a link, a word that no logged model holds."""
    return file_digest(path) if path.is_file() and not path.is_symlink() else "not a file"
