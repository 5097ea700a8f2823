"""What a sweep's words are in Optuna: storage, distributions, samplers, pruners."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from denoise.errors import UserError
from pipelines.tracking.client import without_password
from pipelines.tuning.space import Dimension, Sweep

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.storages import BaseStorage

JOURNAL = "journal:"  # storage in a file that several hosts may append to
FIRST_RUNG = 1


def open_storage(address: str) -> "BaseStorage":
    """Return the storage at ``sqlite:///FILE``, ``postgresql://...`` or ``journal:FILE``.

    Raises:
        UserError: it does not answer.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        if address.startswith(JOURNAL):
            file = Path(address.removeprefix(JOURNAL))
            file.parent.mkdir(parents=True, exist_ok=True)
            return optuna.storages.JournalStorage(JournalFileBackend(str(file)))
        return optuna.storages.RDBStorage(address)
    except (SQLAlchemyError, ImportError, OSError) as error:
        reason = " ".join(str(error).splitlines()[0].split())
        raise UserError(
            f"Optuna's storage {without_password(address)} cannot be opened ({reason}); check tune.storage, for "
            "example sqlite:///optuna.db."
        ) from None


def is_made(address: str) -> bool:
    """Say whether a storage is there, as far as that can be said without making it: opening a file would."""
    file = address.removeprefix("sqlite:///").removeprefix(JOURNAL)
    return file == address or Path(file).exists()


def distribution(one: Dimension) -> "BaseDistribution":
    """Return a dimension as Optuna has it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if one.float is not None:
        return FloatDistribution(*one.float, log=one.log)
    if one.int is not None:
        return IntDistribution(*one.int, log=one.log)
    return CategoricalDistribution(one.choice or ())


def make_sampler(sweep: Sweep, seed: int) -> "optuna.samplers.BaseSampler":
    """Return the sweep's sampler."""
    import optuna
    from optuna import samplers

    seed %= 2**32
    if sweep.sampler == "grid":
        return samplers.GridSampler({key: list(one.choice or ()) for key, one in sweep.space.items()}, seed=sweep.seed)
    made: dict[str, Callable[..., optuna.samplers.BaseSampler]] = {
        "random": samplers.RandomSampler,
        "tpe": samplers.TPESampler,
        "gp": samplers.GPSampler,
        "cmaes": samplers.CmaEsSampler,
        "nsga2": samplers.NSGAIISampler,
    }
    return made[sweep.sampler](seed=seed)


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
