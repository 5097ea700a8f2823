"""Sweep definitions: which keys of params.yaml are searched, how, and how long; from YAML or from a method's fields."""

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

from denoise.config import Config, digest, from_dict, load_config, to_dict
from denoise.documents import build, parse_yaml
from denoise.errors import UsageError, UserError, nearest
from denoise.fields import Positive, Seed
from denoise.redaction import has_password

# Keys of data that decide which images a trial sees, and how; the others say where they are.
DECISIVE_DATA = (
    *("train", "val", "colour", "noise_patch", "pairs", "fixed_noise", "streams", "window", "crops_per_image"),
    *("small", "quarantine"),
)
EVENLY_SPREAD = ("train.eval_every", "train.checkpoint_every", "train.log_every")  # follow from Sweep.evaluations
RANGE = 8  # a method's own number is searched from its default divided by this to its default times this
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
    """The values of one key: exactly one of ``float``, ``int`` and ``choice``."""

    float: Floats | None = None  # lowest and highest
    int: Ints | None = None
    choice: tuple[Value, ...] | None = None
    log: bool = False  # float and int: uniform in the logarithm

    def ends(self) -> Sequence[Value]:
        """Return all choices, or the lowest and the highest value: if these are valid, all values are."""
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
    reduction: Annotated[int, Field(ge=2)] = 3  # asha, hyperband: one of so many trials continues at every rung
    evaluations: Positive = 8  # times that a trial validates, evenly spread: the rungs of the pruner
    images: Positive | None = None  # a trial's length in training images; None: train.steps, whatever the batch
    objectives: tuple[Objective, ...] = ("val_psnr",)  # val_loss needs no clean images; two: nsga2
    seeds: tuple[Seed, ...] = (0,)  # of each configuration; its value is the mean over them
    seed: Seed = 0  # of the sampler


def load_sweep(name: str) -> Sweep:
    """Return a sweep by the name of a file in spaces/, by the name of a method (its own fields), or by a path.

    Raises:
        UsageError: there is none of that name, or the file is not a sweep.
    """
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UsageError(f"there is no file {name}; give a file, or one of {', '.join(names())}.")
        text = path.read_text(encoding="utf-8")
    elif name in names():
        text = (files("pipelines.tuning") / "spaces" / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        return _method_sweep(name)
    try:
        tree = parse_yaml(text)
    except ValueError as error:
        raise UsageError(f"{name} is not valid YAML: {error}.") from None
    if not isinstance(tree, dict):
        raise UsageError(f"{name} should hold keys and values; `denoise tune --help` names a sweep to learn from.")
    return check_sweep(build(Sweep, tree))


def names() -> list[str]:
    """Return the names of the sweeps that are installed, sorted."""
    folder = files("pipelines.tuning") / "spaces"
    return sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))


def with_options(sweep: Sweep, options: Mapping[str, object]) -> Sweep:
    """Return the sweep with some of its fields replaced; None leaves a field as it is.

    Raises:
        UsageError: an invalid value.
    """
    values = {key: value for key, value in options.items() if value is not None}
    return check_sweep(build(Sweep, {**_plain(sweep), **values}))


def check_sweep(sweep: Sweep) -> Sweep:
    """Return the sweep if its parts fit each other.

    Raises:
        UsageError: they do not.
    """
    if not sweep.space:
        raise UsageError("space is empty; name at least one key, e.g. train.lr: {float: [1.0e-5, 1.0e-3], log: true}.")
    for key, dimension in sweep.space.items():
        if sum(part is not None for part in (dimension.float, dimension.int, dimension.choice)) != 1:
            raise UsageError(f"space.{key} needs exactly one of float, int and choice.")
        low, high = dimension.float or dimension.int or (0, 1)
        if low >= high or (dimension.log and low <= 0 and dimension.choice is None):
            raise UsageError(f"space.{key} should go from a lower to a higher number, above 0 where log is true.")
        if reason := why_fixed(key, sweep):
            raise UsageError(f"space.{key} cannot be searched: {reason}.")
        if any(has_password(str(value)) for value in dimension.choice or ()):
            raise UsageError(f"space.{key} holds a password, which the study would keep; see docs/security.md.")
        if sweep.sampler == "grid" and dimension.choice is None:
            raise UsageError(f"space.{key} should be a choice for sampler grid; write choice: [...] or take tpe.")
    if len(sweep.objectives) > 1 and sweep.pruner != "none":
        raise UsageError("several objectives cannot be pruned by one of them; set pruner: none.")
    if len(sweep.objectives) > 1 and sweep.sampler in ("gp", "cmaes"):
        raise UsageError(f"sampler {sweep.sampler} takes one objective; use nsga2 or tpe for several.")
    return sweep


def why_fixed(key: str, sweep: Sweep) -> str:
    """Return what decides a key in place of params.yaml, and how to change it; the empty string for others."""
    if key == "seed":
        return f"the seeds are {list(sweep.seeds)}; write seeds: in the sweep's file (--seed is the sampler's)"
    if key in EVENLY_SPREAD:
        return f"every trial validates {sweep.evaluations} times, evenly spread; give --evaluations instead"
    if key == "train.steps" and sweep.images:
        return f"a trial's length is {sweep.images} training images; give --images instead"
    return ""


def trial_config(sweep: Sweep, base: Config, params: Mapping[str, Value], seed: int) -> Config:
    """Return the configuration of a trial's training run with one seed; its validations divide its steps evenly."""
    config = _with(base, {**params, "seed": seed})
    steps = max(1, sweep.images // config.train.batch_size) if sweep.images else config.train.steps
    every = max(1, steps // sweep.evaluations)
    lengths = {"steps": every * sweep.evaluations, "eval_every": every, "checkpoint_every": every, "log_every": every}
    return _with(config, {f"train.{key}": value for key, value in lengths.items()})


def boundary_configs(sweep: Sweep) -> Iterator[dict[str, Value]]:
    """Yield parameters that together contain every choice and both ends of every dimension, varying one key each."""
    first = {key: dimension.ends()[0] for key, dimension in sweep.space.items()}
    for key, dimension in sweep.space.items():
        for value in dimension.ends():
            yield {**first, key: value}


def identity(sweep: Sweep, base: Config, data_digest: str) -> dict[str, Any]:
    """Return what must not change while a sweep is resumed, as plain data; ``from_identity`` reads it."""
    tree = to_dict(base)
    config = {key: tree[key] for key in ("noise", "method", "net", "train")}
    config["data"] = {key: tree["data"][key] for key in DECISIVE_DATA}
    return {"sweep": {**_plain(sweep), "config": {}}, "config": config, "data_digest": data_digest}


def from_identity(known: Mapping[str, Any], config: Config) -> tuple[Sweep, Config]:
    """Return a sweep and its base from its ``identity``; where it runs and is recorded follows ``config``."""
    tree = to_dict(config)
    decisive = {**known["config"], "data": {**tree["data"], **known["config"]["data"]}}
    return build(Sweep, known["sweep"]), from_dict({**tree, **decisive})


def sweep_name(sweep: Sweep, base: Config, data_digest: str, kind: str) -> str:
    """Return the name by which the same command finds its sweep again."""
    return f"{kind}-{digest(identity(sweep, base, data_digest))[:8]}"


def _with(config: Config, values: Mapping[str, Value]) -> Config:
    overrides = [f"{key}={json.dumps(value)}" for key, value in values.items()]
    return load_config(None, overrides, to_dict(config))


def _plain(sweep: Sweep) -> dict[str, Any]:
    """Return a sweep as plain data."""
    tree: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(sweep)))
    tree["space"] = {
        key: {part: value for part, value in dimension.items() if value not in (None, False)}
        for key, dimension in tree["space"].items()
    }
    return tree


def _method_sweep(name: str) -> Sweep:
    """Return the sweep of a method's own hyperparameters, derived from its fields."""
    from denoise.methods import METHODS

    known = [*names(), *METHODS]
    if name not in known:
        raise UsageError(f"{name} is not a sweep{nearest(name, known)}; known: {', '.join(known)}.")
    hints = typing.get_type_hints(METHODS[name], include_extras=True)

    def is_valid(field: str, value: Value) -> bool:
        try:
            METHODS[name](**{field: value})
        except UserError:
            return False
        return True

    space = {
        f"method.{field.name}": dimension
        for field in dataclasses.fields(METHODS[name])
        if (dimension := _field_dimension(hints[field.name], field.default, partial(is_valid, field.name))) is not None
    }
    if not space:
        raise UsageError(f"{name} has no hyperparameters of its own; sweep train.lr, e.g. `denoise tune ee559-wide`.")
    return check_sweep(
        Sweep(f"The hyperparameters of {name}", space, config={"method": name}, sampler="tpe", pruner="asha")
    )


def _field_dimension(hint: Any, default: object, is_valid: Callable[[Value], bool]) -> Dimension | None:
    """Return the values of a field worth trying: all of a few, or numbers around the default; None where unclear."""
    bounds: list[Any] = []
    if typing.get_origin(hint) is Annotated:
        hint, *bounds = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return Dimension(choice=tuple(value for value in typing.get_args(hint) if is_valid(value)))
    if hint is bool:
        return Dimension(choice=(False, True))
    if hint not in (int, float) or not isinstance(default, int | float) or default <= 0:
        return None
    low, high = _within(bounds, default / RANGE, default * RANGE)
    if hint is float:
        return Dimension(float=(low, high), log=True) if high > low else None
    values = []
    for power in range(-2, 3):
        near = max(1, round(default * 2.0**power))
        # A method may take odd numbers only: where it refuses a number, the next one.
        values += [value for value in (near, near + 1) if low <= value <= high and is_valid(value)][:1]
    choices = tuple(dict.fromkeys(values))
    return Dimension(choice=choices) if len(choices) > 1 else None


def _within(bounds: Sequence[Any], low: float, high: float) -> tuple[float, float]:
    """Return ``low`` and ``high`` moved inside the bounds of a field's annotation."""
    for annotation in bounds:
        for bound in getattr(annotation, "metadata", [annotation]):
            low = max(low, getattr(bound, "ge", low))
            high = min(high, getattr(bound, "le", high), math.nextafter(getattr(bound, "lt", math.inf), 0))
    return low, high
