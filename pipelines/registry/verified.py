"""The files of a registered version, compared with what was registered before they are used."""

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from denoise.errors import UserError
from denoise.files import remove
from pipelines.registry.gates import changed_files
from pipelines.registry.rows import Row
from pipelines.tracking.model import logged_model_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient


def verified_folder(uri: str, api: "MlflowClient", row: Row, cache: Path) -> Path:
    """Return the folder of a version's logged model: in place or in ``cache``, after comparing its sha256.

    Raises:
        UserError: the files are not the registered ones, or the version was not registered by denoise.
    """
    if row["model_id"] is None:  # of our form, so the name of a folder in the cache
        raise UserError(
            f"{row['name']} version {row['version']} was not registered by denoise, so its files cannot be checked; "
            "register a model with `denoise models register MODEL`."
        )
    cached = cache / str(row["model_id"])
    if _is_registered(cached, row):
        return cached
    cache.mkdir(parents=True, exist_ok=True)
    remove(cached, cache)
    with tempfile.TemporaryDirectory(dir=cache) as work:
        root = logged_model_folder(uri, api.get_logged_model(row["model_id"]), Path(work) / "model")
        if not _is_registered(root, row):
            raise changed(row)
        if Path(work) not in root.parents:
            return root  # in place, beside a sqlite database
        with suppress(OSError):  # another process was faster
            root.replace(cached)
    return cached


def _is_registered(root: Path, row: Row) -> bool:
    try:
        return not changed_files(root, row)
    except UserError:
        return False


def changed(row: Row) -> UserError:
    """Return the error for files that are not the registered ones."""
    return UserError(
        f"the files of {row['name']} version {row['version']} are not the registered ones (sha256): "
        "they were changed or damaged; put them back, or train the model again with --name NEW and register that."
    )
