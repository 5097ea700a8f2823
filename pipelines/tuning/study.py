"""A sweep's study in Optuna: the only record of its trials and their states.

Nothing else about a sweep is stored anywhere: whoever opens the study can resume it.
"""

import json
import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from denoise.errors import UserError, nearest
from denoise.redaction import redacted, without_passwords
from pipelines.tuning.lease import Lease
from pipelines.tuning.optuna_objects import (
    make_distribution,
    make_pruner,
    make_sampler,
    open_storage,
    plain_storage_errors,
    storage_exists,
)
from pipelines.tuning.space import DIRECTIONS, Sweep, Value

if TYPE_CHECKING:
    import optuna

IDENTITY, CONFIG = "denoise.sweep", "denoise.config"  # attributes of the study; the keys that its file sets
REASON, SEEDS, RATES = "reason", "seeds", "rates"  # of a trial: why it failed; figures by seed; images/s by rung
NO_CLEAN = "data.val has noisy images only; objectives: [val_loss] needs no clean ones"
UNMEASURED = {"val_psnr": NO_CLEAN, "val_ssim": NO_CLEAN, "val_loss": "set train.val_loss=true"}


class PendingTrial(NamedTuple):
    """A trial to run."""

    number: int
    params: dict[str, Value]


class Study:
    """The trials of one sweep; one process at a time runs them."""

    def __init__(self, address: str, name: str, sweep: Sweep, identity: Mapping[str, Any]) -> None:
        """Open the study of that name, or create it, and acquire its lease.

        Raises:
            UserError: another space, budget or configuration has been searched under this name, or another process
                runs it.
        """
        self.name, self.sweep = name, sweep
        self.distributions = {key: make_distribution(dimension) for key, dimension in sweep.space.items()}
        with plain_storage_errors(address):
            self.study = self._open(address)
            self._check_identity(json.loads(json.dumps(identity)))
            self._name_metrics()
            self.lease = Lease(self.study)
            self.lease.acquire()

    def _open(self, address: str) -> "optuna.Study":
        import optuna

        return optuna.create_study(
            storage=open_storage(address),
            study_name=self.name,
            directions=[DIRECTIONS[objective] for objective in self.sweep.objectives],
            pruner=make_pruner(self.sweep),
            load_if_exists=True,
        )

    def _name_metrics(self) -> None:
        """Store the names that optuna-dashboard shows."""
        from optuna.exceptions import ExperimentalWarning

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self.study.set_metric_names(list(self.sweep.objectives))

    def _check_identity(self, identity: Mapping[str, Any]) -> None:
        known = self.study.user_attrs.get(IDENTITY)
        if known is not None and known != identity:
            raise UserError(
                f"sweep {self.name} was started with another {_first_difference(known, identity)}; give this one a "
                "name of its own with --name, or resume that one with what it had."
            )
        self.study.set_user_attr(IDENTITY, identity)
        self.study.set_user_attr(CONFIG, redacted(self.sweep.config))

    def release(self) -> None:
        """Release the lease: what is RUNNING waits to be resumed, and another process may do that."""
        self.requeue()
        self.lease.release()

    def requeue(self) -> int:
        """Set RUNNING trials, whose process died, to WAITING: they resume before new ones begin. Return how many."""
        from optuna.trial import TrialState

        interrupted = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        for trial in interrupted:
            self.study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)
        return len(interrupted)

    def remaining(self) -> int:
        """Return how many trials are not finished yet, those that have begun among them."""
        return max(0, self.sweep.trials - sum(trial.state.is_finished() for trial in self.trials()))

    def trials(self) -> "Sequence[optuna.trial.FrozenTrial]":
        """Return all trials."""
        return self.study.get_trials(deepcopy=False)

    def ask(self) -> PendingTrial | None:
        """Return the next trial to run: one that waits to be resumed, else a new one; None when all have begun."""
        from optuna.trial import TrialState

        trials = self.trials()
        waiting = any(trial.state == TrialState.WAITING for trial in trials)
        if not waiting and len(trials) >= self.sweep.trials:
            return None
        # Seeded by the trial's number, a sampler has no state but the study: random proposes the same after any break.
        self.study.sampler = make_sampler(self.sweep, self.sweep.seed * 1_000_003 + len(trials))
        trial = self.study.ask(self.distributions)
        return PendingTrial(trial.number, dict(trial.params))

    def record_validation(self, number: int, rung: int, value: float, rate: float) -> bool:
        """Record a trial's objective at its ``rung``-th validation, and return whether it should be pruned.

        ``rate`` is the images per second since the validation before. A rung that a resumed trial repeats is recorded
        once.
        """
        trial, rates = self._trial(number), dict(self._frozen(number).user_attrs.get(RATES, {}))
        if str(rung) not in rates:
            trial.set_user_attr(RATES, {**rates, str(rung): rate})
            if math.isfinite(value) and len(self.sweep.objectives) == 1:  # Optuna has a curve of one objective only
                trial.report(value, rung)
        prunable = self.sweep.pruner != "none" and rung < self.sweep.evaluations and math.isfinite(value)
        return prunable and trial.should_prune()

    def complete(self, number: int, figures: Mapping[str, Mapping[str, float]], images: int) -> None:
        """Record that a trial has ended: as COMPLETE, or as FAIL where an objective was not measured or is not finite.

        Args:
            number: of the trial.
            figures: the last metrics of every seed.
            images: how many it was trained on.
        """
        rates = [rate for rate in self._frozen(number).user_attrs.get(RATES, {}).values() if rate]
        seconds = {"seconds": images / statistics.fmean(rates)} if rates else {}
        by_seed = {seed: {**metrics, **seconds} for seed, metrics in figures.items()}
        self._trial(number).set_user_attr(SEEDS, by_seed)
        for key in self.sweep.objectives:
            if any(key not in metrics for metrics in by_seed.values()):
                return self.fail(number, f"{key} was not measured: {UNMEASURED.get(key, 'no validation took place')}")
            if not all(math.isfinite(metrics[key]) for metrics in by_seed.values()):
                return self.fail(number, f"{key} is not a number")
        means = [statistics.fmean(metrics[key] for metrics in by_seed.values()) for key in self.sweep.objectives]
        self._tell(number, means)

    def prune(self, number: int) -> None:
        """Record that a trial was stopped early; its value is the last one it reported."""
        self._tell(number, pruned=True)

    def fail(self, number: int, reason: str) -> None:
        """Record that a trial has failed, and why."""
        self._trial(number).set_user_attr(REASON, reason)
        self._tell(number)

    def _tell(self, number: int, values: Sequence[float] | None = None, pruned: bool = False) -> None:
        from optuna.samplers import RandomSampler
        from optuna.trial import TrialState

        if self.sweep.sampler == "grid":  # Optuna's grid sampler would stop its own loop, which does not run here
            self.study.sampler = RandomSampler()
        if values is not None:
            self.study.tell(number, list(values))
        else:
            self.study.tell(number, state=TrialState.PRUNED if pruned else TrialState.FAIL)

    def best(self) -> "optuna.trial.FrozenTrial | None":
        """Return the best complete trial by the first objective, None where no trial is complete."""
        from optuna.trial import TrialState

        complete = [trial for trial in self.trials() if trial.state == TrialState.COMPLETE]
        sign = 1 if DIRECTIONS[self.sweep.objectives[0]] == "maximize" else -1
        return max(complete, key=lambda trial: (sign * trial.values[0], -trial.number), default=None)

    def _trial(self, number: int) -> "optuna.trial.Trial":
        import optuna

        return optuna.trial.Trial(self.study, self._frozen(number)._trial_id)

    def _frozen(self, number: int) -> "optuna.trial.FrozenTrial":
        return self.trials()[number]


def stored_identity(address: str, name: str) -> dict[str, Any]:
    """Return the identity of a sweep in a storage: what ``space.identity`` returned when it began, with its config.

    Raises:
        UserError: there is none of that name; the message names the nearest one.
    """
    import optuna

    names = [row["name"] for row in list_sweeps(address)]
    if name not in names:
        raise UserError(
            f"there is no sweep {name} in {without_passwords(address)}{nearest(name, names)}; `denoise sweeps list` "
            "lists them."
        )
    study = optuna.load_study(study_name=name, storage=open_storage(address))
    identity: dict[str, Any] = study.user_attrs[IDENTITY]
    return {**identity, "sweep": {**identity["sweep"], "config": study.user_attrs.get(CONFIG, {})}}


def rung_of(trial: "optuna.trial.FrozenTrial") -> int:
    """Return the rung that a trial has reached: how many times it has validated."""
    return max(map(int, trial.user_attrs.get(RATES, {})), default=0)


def _first_difference(known: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> str:
    """Return the first key whose value differs, with both values."""
    for key in sorted({*known, *now}):
        before, after = known.get(key), now.get(key)
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            return _first_difference(before, after, f"{prefix}{key}.")
        return f"{prefix}{key} ({before}, now {after})".removeprefix("sweep.")
    return "configuration"


def list_sweeps(address: str) -> list[dict[str, Any]]:
    """Return every sweep of a storage: name, trials by state, best value of the first objective (None without)."""
    import optuna
    from optuna.trial import TrialState

    if not storage_exists(address):
        return []
    storage = open_storage(address)
    rows = []
    for name in optuna.get_all_study_names(storage):
        study = optuna.load_study(study_name=name, storage=storage)
        if IDENTITY not in study.user_attrs:
            continue  # a study that is not a sweep of ours
        trials = study.get_trials(deepcopy=False)
        states = [trial.state.name for trial in trials]
        values = [trial.values[0] for trial in trials if trial.state == TrialState.COMPLETE]
        best = max if study.directions[0] == optuna.study.StudyDirection.MAXIMIZE else min
        rows.append(
            {
                "name": name,
                "trials": {state: states.count(state) for state in dict.fromkeys(states)},
                "of": study.user_attrs[IDENTITY]["sweep"]["trials"],
                "best": best(values, default=None),
            }
        )
    return rows
