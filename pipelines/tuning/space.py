"""Sweeps: which keys of params.yaml are searched, how, and how long; from a YAML file or a method's own fields."""

import dataclasses
import json
import math
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field

from denoise.config import Config, Positive, build, digest, from_dict, load_config, to_dict
from denoise.errors import UsageError, UserError, nearest

# Keys of data that decide which images a trial sees, and how; the others say where they are.
DECISIVE = ("train", "val", "colour", "fixed_noise", "streams", "window", "crops_per_image", "small", "quarantine")
SIDE = 8  # a method's own float is searched from its default divided by this to its default times this
DIRECTIONS: dict[str, Literal["maximize", "minimize"]] = {
    "val_psnr": "maximize",
    "val_ssim": "maximize",
    "val_loss": "minimize",
    "seconds": "minimize",
}

Sampler = Literal["random", "tpe", "gp", "cmaes", "grid", "nsga2"]
Pruner = Literal["none", "asha", "hyperband", "median"]
Objective = Literal["val_psnr", "val_ssim", "val_loss", "seconds"]
Value = bool | int | float | str
Floats: TypeAlias = tuple[float, float]
Ints: TypeAlias = tuple[int, int]


@dataclass(frozen=True)
class Dimension:
    """Where the values of one key come from: exactly one of ``float``, ``int`` and ``choice``."""

    float: Floats | None = None  # lowest and highest
    int: Ints | None = None
    choice: tuple[Value, ...] | None = None
    log: bool = False  # float and int: uniform in the logarithm

    def ends(self) -> Sequence[Value]:
        """Return values that must all be valid for the whole dimension to be: all choices, or both ends."""
        return self.choice or self.float or self.int or ()


@dataclass(frozen=True)
class Sweep:
    """What is searched, and how long; the shape of pipelines/tuning/spaces/NAME.yaml."""

    title: str
    space: Mapping[str, Dimension]  # key of params.yaml -> its values
    source: str = ""  # where the numbers come from
    note: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)  # keys of params.yaml that all trials share
    trials: Positive = 20
    sampler: Sampler = "random"
    pruner: Pruner = "none"
    reduction: Annotated[int, Field(ge=2)] = 3  # asha, hyperband: one trial of so many goes on at every rung
    evaluations: Positive = 8  # times that a trial validates, evenly spread: what the pruner counts in
    images: Positive | None = None  # a trial's length in training images; None: train.steps, whatever the batch
    objectives: tuple[Objective, ...] = ("val_psnr",)  # val_loss needs no clean images; two: nsga2
    seeds: tuple[int, ...] = (0,)  # of each configuration; what counts is the mean
    seed: int = 0  # of the sampler


def load_sweep(name: str) -> Sweep:
    """Return a sweep by the name of a file in spaces/, by the name of a method (its own fields), or by a path.

    Raises:
        UsageError: there is none of that name, or the file does not say what a sweep needs.
    """
    import yaml

    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UsageError(f"{name} is not there; give a file, or one of {', '.join(names())}.")
        text = path.read_text(encoding="utf-8")
    elif name in names():
        text = (files("pipelines.tuning") / "spaces" / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        return _of_method(name)
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{name} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(tree, dict):
        raise UsageError(f"{name} should hold keys and values; `denoise tune --help` names a sweep to learn from.")
    return checked(build(Sweep, tree))


def names() -> list[str]:
    """Return the names of the sweeps that are installed, sorted."""
    folder = files("pipelines.tuning") / "spaces"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def changed(sweep: Sweep, options: Mapping[str, object]) -> Sweep:
    """Return the sweep with some of its fields replaced; None leaves a field as it is.

    Raises:
        UsageError: a value that does not fit.
    """
    given = {key: value for key, value in options.items() if value is not None}
    return checked(build(Sweep, {**_plain(sweep), **given}))


def checked(sweep: Sweep) -> Sweep:
    """Return the sweep if its parts fit each other."""
    if not sweep.space:
        raise UsageError("space is empty; name at least one key, e.g. train.lr: {float: [1.0e-5, 1.0e-3], log: true}.")
    for key, one in sweep.space.items():
        if sum(part is not None for part in (one.float, one.int, one.choice)) != 1:
            raise UsageError(f"space.{key} needs exactly one of float, int and choice.")
        if one.choice is None and (one.ends()[0] >= one.ends()[1] or (one.log and one.ends()[0] <= 0)):  # type: ignore[operator]
            raise UsageError(f"space.{key} should go from a lower to a higher number, above 0 where log is true.")
        if sweep.sampler == "grid" and one.choice is None:
            raise UsageError(f"space.{key} should be a choice for sampler grid; write choice: [...] or take tpe.")
    if len(sweep.objectives) > 1 and sweep.pruner != "none":
        raise UsageError("several objectives cannot be pruned by one of them; set pruner: none.")
    if len(sweep.objectives) > 1 and sweep.sampler in ("gp", "cmaes"):
        raise UsageError(f"sampler {sweep.sampler} takes one objective; use nsga2 or tpe for several.")
    return sweep


def trial_config(sweep: Sweep, base: Config, params: Mapping[str, Value], seed: int) -> Config:
    """Return the configuration of one training run of a trial: its steps are a multiple of its validations."""
    config = _with(base, {**params, "seed": seed})
    steps = max(1, sweep.images // config.train.batch_size) if sweep.images else config.train.steps
    every = max(1, steps // sweep.evaluations)
    lengths = {"steps": every * sweep.evaluations, "eval_every": every, "checkpoint_every": every, "log_every": every}
    return _with(config, {f"train.{key}": value for key, value in lengths.items()})


def boundary_configs(sweep: Sweep) -> Iterator[dict[str, Value]]:
    """Yield parameters that between them hold all choices and ends of every dimension, one at a time."""
    first = {key: one.ends()[0] for key, one in sweep.space.items()}
    for key, one in sweep.space.items():
        for value in one.ends():
            yield {**first, key: value}


def identity(sweep: Sweep, base: Config, data_digest: str) -> dict[str, Any]:
    """Return what must not change while a sweep is resumed, as plain data: what ``resumed`` reads."""
    tree = to_dict(base)
    kept = {key: tree[key] for key in ("noise", "method", "net", "train")}
    kept["data"] = {key: tree["data"][key] for key in DECISIVE}
    return {"sweep": {**_plain(sweep), "config": {}}, "config": kept, "data_digest": data_digest}


def refuse_changes(overrides: Sequence[str]) -> None:
    """Refuse keys of a command that resumes a sweep and that would be another sweep's.

    Raises:
        UsageError: naming the first.
    """
    for override in overrides:
        key = override.partition("=")[0].strip()
        part, _, rest = key.partition(".")
        if part in ("preset", "seed", "noise", "method", "net", "train") or (part == "data" and rest in DECISIVE):
            raise UsageError(
                f"{key} cannot change while a sweep is resumed; leave it away, or begin another sweep with it."
            )


def resumed(known: Mapping[str, Any], config: Config) -> tuple[Sweep, Config]:
    """Return a sweep and its base from what ``identity`` wrote; where it runs and is recorded is as ``config`` says."""
    tree = to_dict(config)
    kept = {**known["config"], "data": {**tree["data"], **known["config"]["data"]}}
    return build(Sweep, known["sweep"]), from_dict({**tree, **kept})


def sweep_name(sweep: Sweep, base: Config, data_digest: str, kind: str) -> str:
    """Return the name by which the same command finds its sweep again."""
    return f"{kind}-{digest(identity(sweep, base, data_digest))[:8]}"


def _with(config: Config, values: Mapping[str, Value]) -> Config:
    overrides = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    return load_config(None, overrides, to_dict(config))


def _plain(sweep: Sweep) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(sweep)))
    tree["space"] = {
        key: {part: value for part, value in one.items() if value not in (None, False)}
        for key, one in tree["space"].items()
    }
    return tree


def _of_method(name: str) -> Sweep:
    """Return the sweep of a method's own hyperparameters, as its fields describe them."""
    from denoise.methods import METHODS

    known = [*names(), *METHODS]
    if name not in known:
        raise UsageError(f"{name} is no sweep{nearest(name, known)}; known: {', '.join(known)}.")
    hints = typing.get_type_hints(METHODS[name], include_extras=True)

    def taken(field: str, value: int) -> bool:
        try:
            METHODS[name](**{field: value})
        except UserError:
            return False
        return True

    space = {
        f"method.{one.name}": found
        for one in dataclasses.fields(METHODS[name])
        if (found := _of_field(hints[one.name], one.default, partial(taken, one.name))) is not None
    }
    if not space:
        raise UsageError(f"{name} has no hyperparameters of its own; sweep train.lr, e.g. `denoise tune ee559-wide`.")
    return checked(
        Sweep(f"The hyperparameters of {name}", space, config={"method": name}, sampler="tpe", pruner="asha")
    )


def _of_field(hint: Any, default: object, taken: Callable[[int], bool]) -> Dimension | None:
    """Return the values of a field worth trying: all of a few, or numbers around the default; None where unclear."""
    bounds: list[Any] = []
    if typing.get_origin(hint) is Annotated:
        hint, *bounds = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return Dimension(choice=typing.get_args(hint))
    if hint is bool:
        return Dimension(choice=(False, True))
    if hint not in (int, float) or not isinstance(default, int | float) or default <= 0:
        return None
    low, high = _within(bounds, default / SIDE, default * SIDE)
    if hint is float:
        return Dimension(float=(low, high), log=True) if high > low else None
    near = [max(1, round(default * 2.0**power)) for power in range(-2, 3)]
    # A method may take odd numbers only: where it refuses one, the next.
    found = [next((value for value in (one, one + 1) if low <= value <= high and taken(value)), None) for one in near]
    values = tuple(dict.fromkeys(value for value in found if value is not None))
    return Dimension(choice=values) if len(values) > 1 else None


def _within(bounds: Sequence[Any], low: float, high: float) -> tuple[float, float]:
    for one in bounds:
        for part in getattr(one, "metadata", [one]):
            low = max(low, getattr(part, "ge", low))
            high = min(high, getattr(part, "le", high), math.nextafter(getattr(part, "lt", math.inf), 0))
    return low, high
