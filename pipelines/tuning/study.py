"""A sweep's study in Optuna: the one record of its trials, which says the truth about each of them.

Nothing else about a sweep is kept anywhere: whoever opens the study can go on with it.
"""

import json
import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from denoise.errors import UserError, nearest
from pipelines.tracking.client import without_password
from pipelines.tuning.lease import Lease
from pipelines.tuning.optuna_objects import distribution, is_made, make_pruner, make_sampler, open_storage
from pipelines.tuning.space import DIRECTIONS, Sweep, Value

if TYPE_CHECKING:
    import optuna

IDENTITY = "denoise.sweep"  # attribute of the study
REASON, SEEDS, RATES = "reason", "seeds", "rates"  # of a trial: why it failed; figures by seed; images/s by rung
NOISY = "the images of data.val are noisy alone; objectives: [val_loss] needs no clean ones"
UNMEASURED = {"val_psnr": NOISY, "val_ssim": NOISY, "val_loss": "set train.val_loss=true"}


class PendingTrial(NamedTuple):
    """A trial that is to run."""

    number: int
    params: dict[str, Value]


class Study:
    """The trials of one sweep; one process at a time goes on with them."""

    def __init__(self, address: str, name: str, sweep: Sweep, identity: Mapping[str, Any]) -> None:
        """Open the study of that name, or begin it.

        Raises:
            UserError: another space, budget or configuration has been searched under this name, or another process
                is at it.
        """
        import optuna

        self.name, self.sweep = name, sweep
        self.study = optuna.create_study(
            storage=open_storage(address),
            study_name=name,
            directions=[DIRECTIONS[one] for one in sweep.objectives],
            pruner=make_pruner(sweep),
            load_if_exists=True,
        )
        self.distributions = {key: distribution(one) for key, one in sweep.space.items()}
        self._refuse_another(json.loads(json.dumps(identity)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study.set_metric_names(list(sweep.objectives))  # as which optuna-dashboard shows them
        self.lease = Lease(self.study)
        self.lease.take()

    def _refuse_another(self, identity: Mapping[str, Any]) -> None:
        known = self.study.user_attrs.get(IDENTITY)
        if known is not None and known != identity:
            raise UserError(
                f"sweep {self.name} was started with another {_first_difference(known, identity)}; give this one a "
                "name of its own with --name, or resume that one with what it had."
            )
        self.study.set_user_attr(IDENTITY, identity)

    def release(self) -> None:
        """Let go of the study: what is RUNNING waits to be resumed, and another process may do that."""
        self.requeue()
        self.lease.release()

    def requeue(self) -> int:
        """Make trials WAITING whose process died, so that they go on before new ones begin; return how many."""
        from optuna.trial import TrialState

        left = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        for one in left:
            self.study._storage.set_trial_state_values(one._trial_id, TrialState.WAITING)
        return len(left)

    def remaining(self) -> int:
        """Return how many trials are still to be run, those begun among them."""
        return max(0, self.sweep.trials - sum(one.state.is_finished() for one in self.trials()))

    def trials(self) -> "Sequence[optuna.trial.FrozenTrial]":
        """Return all trials."""
        return self.study.get_trials(deepcopy=False)

    def ask(self) -> PendingTrial | None:
        """Return the next trial to run: one that waits to be resumed, else a new one; None when all have begun."""
        from optuna.trial import TrialState

        trials = self.trials()
        waits = any(one.state == TrialState.WAITING for one in trials)
        if not waits and len(trials) >= self.sweep.trials:
            return None
        # Seeded by the trial's number, a sampler needs no memory but the study: random asks the same after any break.
        self.study.sampler = make_sampler(self.sweep, self.sweep.seed * 1_000_003 + len(trials))
        trial = self.study.ask(self.distributions)
        return PendingTrial(trial.number, dict(trial.params))

    def record_validation(self, number: int, rung: int, value: float, rate: float) -> bool:
        """Note what a trial has reached at its ``rung``-th validation, and say whether it should be pruned.

        ``rate`` is the images per second since the one before.
        """
        trial, rates = self._trial(number), dict(self._frozen(number).user_attrs.get(RATES, {}))
        if str(rung) not in rates:
            trial.set_user_attr(RATES, {**rates, str(rung): rate})
            if math.isfinite(value) and len(self.sweep.objectives) == 1:  # Optuna has a curve of one objective only
                trial.report(value, rung)
        goes_on = self.sweep.pruner == "none" or rung >= self.sweep.evaluations or not math.isfinite(value)
        return not goes_on and trial.should_prune()

    def complete(self, number: int, figures: Mapping[str, Mapping[str, float]], images: int) -> None:
        """End a trial: FAIL where an objective was not measured or is not a number.

        Args:
            number: of the trial.
            figures: the last ones of every seed.
            images: that were trained on.
        """
        rates = [rate for rate in self._frozen(number).user_attrs.get(RATES, {}).values() if rate]
        seconds = {"seconds": images / statistics.fmean(rates)} if rates else {}
        by_seed = {seed: {**one, **seconds} for seed, one in figures.items()}
        self._trial(number).set_user_attr(SEEDS, by_seed)
        for key in self.sweep.objectives:
            if any(key not in one for one in by_seed.values()):
                return self.fail(number, f"{key} was not measured: {UNMEASURED.get(key, 'no validation took place')}")
            if not all(math.isfinite(one[key]) for one in by_seed.values()):
                return self.fail(number, f"{key} is not a number")
        self._tell(number, [statistics.fmean(one[key] for one in by_seed.values()) for key in self.sweep.objectives])

    def prune(self, number: int) -> None:
        """End a trial that was stopped early; what counts is the last value it has reported."""
        self._tell(number, pruned=True)

    def fail(self, number: int, reason: str) -> None:
        """End a trial that cannot be finished."""
        self._trial(number).set_user_attr(REASON, reason)
        self._tell(number)

    def _tell(self, number: int, values: Sequence[float] | None = None, pruned: bool = False) -> None:
        from optuna.samplers import RandomSampler
        from optuna.trial import TrialState

        if self.sweep.sampler == "grid":  # Optuna's would stop a loop that there is not
            self.study.sampler = RandomSampler()
        if values is not None:
            self.study.tell(number, list(values))
        else:
            self.study.tell(number, state=TrialState.PRUNED if pruned else TrialState.FAIL)

    def best(self) -> "optuna.trial.FrozenTrial | None":
        """Return the best finished trial by the first objective, None where none was finished."""
        from optuna.trial import TrialState

        done = [one for one in self.trials() if one.state == TrialState.COMPLETE]
        sign = 1 if DIRECTIONS[self.sweep.objectives[0]] == "maximize" else -1
        return max(done, key=lambda one: (sign * one.values[0], -one.number), default=None)

    def _trial(self, number: int) -> "optuna.trial.Trial":
        import optuna

        return optuna.trial.Trial(self.study, self._frozen(number)._trial_id)

    def _frozen(self, number: int) -> "optuna.trial.FrozenTrial":
        return self.trials()[number]


def known_sweep(address: str, name: str) -> dict[str, Any]:
    """Return what a sweep was begun with.

    Raises:
        UserError: there is none of that name; the nearest one is told.
    """
    import optuna

    names = [row["name"] for row in list_sweeps(address)]
    if name not in names:
        raise UserError(
            f"there is no sweep {name} in {without_password(address)}{nearest(name, names)}; `denoise sweeps list` "
            "names those there are."
        )
    known: dict[str, Any] = optuna.load_study(study_name=name, storage=open_storage(address)).user_attrs[IDENTITY]
    return known


def rung_of(trial: "optuna.trial.FrozenTrial") -> int:
    """Return how often a trial has validated."""
    return max(map(int, trial.user_attrs.get(RATES, {})), default=0)


def _first_difference(known: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> str:
    for key in sorted({*known, *now}):
        one, other = known.get(key), now.get(key)
        if one == other:
            continue
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            return _first_difference(one, other, f"{prefix}{key}.")
        return f"{prefix}{key} ({one}, now {other})".removeprefix("sweep.")
    return "configuration"


def list_sweeps(address: str) -> list[dict[str, Any]]:
    """Return every sweep of a storage: name, trials by state, best value of the first objective (None without)."""
    import optuna
    from optuna.trial import TrialState

    if not is_made(address):
        return []
    storage = open_storage(address)
    rows = []
    for name in optuna.get_all_study_names(storage):
        study = optuna.load_study(study_name=name, storage=storage)
        if IDENTITY not in study.user_attrs:
            continue  # somebody else's
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
