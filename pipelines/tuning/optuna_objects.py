"""Optuna's storages, distributions, samplers and pruners, built from a sweep's definition."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from denoise.errors import UserError, first_line
from denoise.redaction import without_passwords
from pipelines.tracking.database import absolute_sqlite_uri, sqlite_file
from pipelines.tuning.space import Dimension, Sweep

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage

JOURNAL = "journal:"  # prefix of a storage in a file that several hosts may append to
FIRST_RUNG = 1


def open_storage(address: str) -> "BaseStorage":
    """Return the storage at ``sqlite:///FILE``, ``postgresql://...`` or ``journal:FILE``.

    Raises:
        UserError: it does not answer.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with plain_storage_errors(address):
        if address.startswith(JOURNAL):
            file = Path(address.removeprefix(JOURNAL))
            file.parent.mkdir(parents=True, exist_ok=True)
            return optuna.storages.JournalStorage(JournalFileBackend(str(file)))
        return optuna.storages.RDBStorage(absolute_sqlite_uri(address, Path.cwd()) or address)


@contextmanager
def plain_storage_errors(address: str) -> Iterator[None]:
    """Turn the exceptions of a study's storage, also of a read-only or a full one, into one sentence."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (StorageInternalError, SQLAlchemyError, ImportError, OSError) as error:
        cause = error.__cause__ if isinstance(error, StorageInternalError) and error.__cause__ else error
        raise UserError(
            f"Optuna's storage {without_passwords(address)} cannot be opened or written "
            f"({' '.join(first_line(cause).split())}); check tune.storage, for example sqlite:///optuna.db."
        ) from None


def storage_exists(address: str) -> bool:
    """Return whether a storage exists, without opening it, which would create a file; a database server does exist."""
    file = Path(address.removeprefix(JOURNAL)) if address.startswith(JOURNAL) else sqlite_file(address)
    return file is None or file.exists()


def make_distribution(dimension: Dimension) -> "BaseDistribution":
    """Return the distribution of a dimension."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dimension.float is not None:
        return FloatDistribution(*dimension.float, log=dimension.log)
    if dimension.int is not None:
        return IntDistribution(*dimension.int, log=dimension.log)
    return CategoricalDistribution(dimension.choice or ())


def make_sampler(sweep: Sweep, seed: int) -> "optuna.samplers.BaseSampler":
    """Return the sweep's sampler."""
    import optuna
    from optuna import samplers

    seed %= 2**32
    if sweep.sampler == "grid":
        grid = {key: list(dimension.choice or ()) for key, dimension in sweep.space.items()}
        return samplers.GridSampler(grid, seed=sweep.seed)
    classes: dict[str, Callable[..., optuna.samplers.BaseSampler]] = {
        "random": samplers.RandomSampler,
        "tpe": samplers.TPESampler,
        "gp": samplers.GPSampler,
        "cmaes": samplers.CmaEsSampler,
        "nsga2": samplers.NSGAIISampler,
    }
    return classes[sweep.sampler](seed=seed)


def make_pruner(sweep: Sweep) -> "optuna.pruners.BasePruner":
    """Return the sweep's pruner; a rung is one validation."""
    from optuna import pruners

    if sweep.pruner == "asha":
        return pruners.SuccessiveHalvingPruner(min_resource=FIRST_RUNG, reduction_factor=sweep.reduction)
    if sweep.pruner == "hyperband":
        return pruners.HyperbandPruner(FIRST_RUNG, sweep.evaluations, sweep.reduction)
    if sweep.pruner == "median":
        return pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=FIRST_RUNG)
    return pruners.NopPruner()
