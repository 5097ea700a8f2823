"""The teacher of a distillation as the shell sees it: found by its address, known by its digest."""

from dataclasses import replace
from pathlib import Path

from denoise.config import Config

TEACHER_TAG = "teacher_digest"  # of the MLflow run of a training that has one


def with_teacher(config: Config) -> Config:
    """Return a configuration whose teacher is a folder by a path that holds in any working directory.

    A registered model (models:/NAME@ALIAS) is fetched and checked; the alias may move later, the folder stays. As all
    workers of a run read the folder, it has to lie where each of their hosts sees it.

    Raises:
        UserError: no such folder, name, alias or version.
    """
    reference = config.train.teacher
    if reference is None:
        return config
    folder = Path(reference)
    if reference.startswith("models:/"):
        from pipelines.registry.versions import model_folder
        from pipelines.tracking.client import resolve_uri

        folder = model_folder(resolve_uri(config.tracking.uri, Path.cwd()), reference)
    return replace(config, train=replace(config.train, teacher=str(folder.absolute())))


def teacher_digest(config: Config) -> str | None:
    """Return the sha256 of the teacher's folder, None without a teacher.

    Raises:
        UserError: there is no model.
    """
    from denoise.model_files import model_digest

    return None if config.train.teacher is None else model_digest(Path(config.train.teacher))
