"""Keys of params.yaml on the command line of a sweep: those that would change nothing are refused, not ignored."""

from collections.abc import Sequence

from denoise.config import CHOICES, Config
from denoise.errors import UsageError
from pipelines.tuning.space import DECISIVE_DATA, Sweep, why_fixed


def refuse_ineffective(overrides: Sequence[str], sweep: Sweep, config: Config) -> None:
    """Refuse overrides that a sweep would replace or ignore.

    Args:
        overrides: KEY=VALUE of the command line.
        sweep: what is searched.
        config: what all trials share, with the overrides in it.

    Raises:
        UsageError: there is one; the message names it, and what to do instead.
    """
    if config.preset is not None:
        raise UsageError(
            f"preset={config.preset} has no effect on a sweep; write the keys that `denoise presets {config.preset}` "
            "shows below config: in the sweep's file, and give preset=null."
        )
    for key in map(_key, overrides):
        if reason := _why_ineffective(key, sweep, config):
            raise UsageError(f"{key} cannot be given for this sweep: {reason}.")


def refuse_changes(overrides: Sequence[str]) -> None:
    """Refuse overrides that would make another sweep of the one that a command resumes.

    Raises:
        UsageError: there is one; the message names the first.
    """
    for key in map(_key, overrides):
        if _is_stored(key):
            raise UsageError(
                f"{key} cannot change while a sweep is resumed; leave it out, or begin another sweep with it."
            )


def to_repeat(overrides: Sequence[str]) -> list[str]:
    """Return those of a sweep's overrides that a command which resumes it needs again: the study has the others."""
    return [override for override in overrides if not _is_stored(_key(override))]


def _is_stored(key: str) -> bool:
    """Return whether the study keeps the value of a key, as it decides what the trials learn."""
    part, _, rest = key.partition(".")
    return part in ("preset", "seed", "noise", "method", "net", "train") or (part == "data" and rest in DECISIVE_DATA)


def _key(override: str) -> str:
    return override.partition("=")[0].strip()


def _why_ineffective(key: str, sweep: Sweep, config: Config) -> str:
    """Return why an override changes nothing, and what does; the empty string where it counts."""
    head = key.partition(".")[0]
    if key in sweep.space or (head in CHOICES and head in sweep.space):
        return "it is searched; leave it out, or write a sweep without it"
    if key == "train.val_loss" and not config.train.val_loss and "val_loss" in sweep.objectives:
        return "val_loss is an objective; leave it out, or choose other objectives in the sweep's file"
    if key == "train.steps" and not sweep.images and (left := config.train.steps % sweep.evaluations):
        below = config.train.steps - left
        near = " or ".join(str(steps) for steps in (below, below + sweep.evaluations) if steps)
        return f"its {sweep.evaluations} validations divide the steps evenly; give {near}, or --evaluations"
    return why_fixed(key, sweep)
