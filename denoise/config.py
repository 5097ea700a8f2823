"""The configuration: one tree of frozen dataclasses, read from params.yaml and ``key=value`` overrides."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from denoise.errors import UsageError, UserError, nearest

T = TypeVar("T")


def _split(value: object) -> object:
    """Let ``data.train=bsds300,imagenet`` mean a list."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _word(value: object) -> object:
    """Return the word that YAML has made a truth value of: it reads yes and no so."""
    return {"True": "yes", "False": "no"}[str(value)] if isinstance(value, bool) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_split)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Augmentation = Annotated[tuple[Literal["flip", "rotate"], ...], BeforeValidator(_split)]


@dataclasses.dataclass(frozen=True)
class Choice:
    """Something chosen by name, with fields of its own: ``method=n2n method.loss_name=l1``."""

    name: str
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Data:
    """Which images."""

    root: str = "data"  # folder of downloads/, raw/ and shards/
    train: Names = ("samples",)  # sets whose train split is learnt from
    val: Names = ("samples",)  # sets whose val split is watched during training
    test: Names = ("samples",)  # sets whose test split is scored at the end
    colour: Literal["rgb", "grey"] = "rgb"
    mirror: str | None = None  # folder or address to fetch from instead of the official sites
    min_side: Positive | None = None  # imagenet only: keep images with both sides in min_side..max_side
    max_side: Positive | None = None
    shard_mb: Positive = 256  # a shard is closed when it has grown to this size
    url: str | None = None  # where shards are read from: s3://BUCKET/PREFIX, http(s)://..., a folder; None: root
    disk_gb: Annotated[float, Field(gt=0)] = 50  # shards from a url that a machine keeps on its disk
    cache_mb: Count = 2048  # decoded images that the workers of a machine share in memory
    streams: Positive = 64  # canonical streams of shards that are read side by side
    window: Positive = 4  # successive shards of a stream that samples are drawn from
    crops_per_image: Positive = 1  # successive samples of a batch that are cut from one image
    small: Literal["pad", "leave_out"] = "pad"  # what becomes of images smaller than a crop: padded by reflection
    threads: Positive = 2  # that decode, in each worker
    quarantine: Count = 0  # samples that may be left out because their bytes are damaged; 0: any one ends the run
    fixed_noise: bool = False  # one noisy realisation of each image, drawn once, instead of fresh noise every step
    allow_overlap: Names = ()  # test sets that may share images with the training sets

    @property
    def channels(self) -> int:
        """3 for rgb, 1 for grey."""
        return 3 if self.colour == "rgb" else 1


@dataclasses.dataclass(frozen=True)
class Train:
    """How long and how fast. A step is one optimizer step on one global batch."""

    steps: Positive = 500
    batch_size: Positive = 4  # global: shared by all ranks
    crop: Positive = 64  # side of the square training crops, in pixels
    lr: Annotated[float, Field(gt=0)] = 1e-3
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"  # eps 1e-8
    betas: tuple[Decay, Decay] = (0.9, 0.99)  # adam and adamw
    momentum: Decay = 0.9  # sgd
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: str = "ramp"
    rampup: Share = 0.1  # ramp: share of the steps
    rampdown: Share = 0.5
    milestones: tuple[Share, ...] = (0.5,)  # multistep: shares of the steps after which lr is multiplied by gamma
    gamma: Annotated[float, Field(gt=0)] = 0.5
    augment: Augmentation = ()  # flip, rotate
    ema: Decay = 0.0  # decay of the average of the weights that the model is made of; 0: the weights themselves
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 where the hardware has it
    channels_last: bool = True
    fused: bool = True  # one kernel for all parameters in the optimizer
    compile: bool = False  # by torch.compile: worth its minute on a GPU and long runs
    cuda_graphs: bool = False  # compile, and on a GPU launch all kernels of a pass at once ("reduce-overhead")
    static_graph: bool = True  # tell DDP that every step runs the same graph; not with a micro-batch
    deterministic: bool = False  # the same bits on a GPU, at some cost; a CPU gives them anyway
    micro_batch: Positive | None = (
        None  # crops that a worker computes at once, the rest of its share after them; None: all
    )
    oom: Literal["stop", "halve"] = "stop"  # where a GPU's memory is full: stop, or halve the micro-batch and go on
    skip_nonfinite: Count = (
        0  # steps that may be skipped because their loss is not finite; 0: the first one ends the run
    )
    val_loss: bool = False  # validate the method's own loss besides, which needs no clean images
    model: Literal["last", "best"] = "last"  # the checkpoint that becomes the model: the last, or the best in val_psnr
    log_every: Positive = 50
    eval_every: Positive = 100
    checkpoint_every: Positive = 100


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """How results are scored."""

    protocol: str = "float"
    passes: Positive | None = None  # passes averaged an image; None: as many as the method's paper averages
    average: bool = False  # average over the flips and turns that training augmented with


@dataclasses.dataclass(frozen=True)
class Ray:
    """Where training runs."""

    address: str | None = None  # of a running cluster; without one, RAY_ADDRESS, else a cluster on this machine
    workers: Positive = 2
    min_workers: Positive | None = None  # go on with so few while there is no room for all; None: wait for all
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    gpu: Annotated[Literal["auto", "yes", "no"], BeforeValidator(_word)] = "auto"
    gpus_per_worker: Annotated[float, Field(gt=0, le=1)] = 1  # below 1, workers share a GPU
    storage: str = "runs/ray"  # folder or s3:// address of checkpoints
    max_failures: Count = 3  # worker failures a run survives
    keep_checkpoints: Positive = 2  # the newest; the best is kept beside them
    timeout: Annotated[float, Field(gt=0)] = 600  # seconds that workers wait for one that does not answer


@dataclasses.dataclass(frozen=True)
class Tracking:
    """Where MLflow records."""

    uri: str = "sqlite:///mlflow.db"
    experiment: str = "denoise"


@dataclasses.dataclass(frozen=True)
class Tune:
    """Where Optuna keeps the trials of sweeps."""

    storage: str = "sqlite:///optuna.db"  # postgresql://... where several machines begin sweeps; or journal:FILE


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything, in the shape of params.yaml."""

    preset: str | None = None  # a published recipe that params.yaml is overlaid with
    seed: int = 0
    noise: str = "gauss25"
    method: Choice = Choice("n2n")
    net: Choice = Choice("auto")  # auto: the network of the method's paper
    compare: Names = ("n2c", "n2n")  # the methods that `dvc repro` trains and compares
    data: Data = Data()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    ray: Ray = Ray()
    tracking: Tracking = Tracking()
    tune: Tune = Tune()


def load_config(
    params: Path | None = None, overrides: Iterable[str] = (), recipe: Mapping[str, Any] | None = None
) -> Config:
    """Return the configuration of a params.yaml (defaults where there is none), with a recipe laid over it and then
    ``key=value`` overrides.

    Raises:
        UsageError: an override that is no ``key=value``, an unknown key (the nearest one is named), or a value of the
            wrong type or out of range.
    """
    tree: dict[str, Any] = {}
    if params is not None and params.exists():
        tree = _read_yaml(params)
    tree = _overlaid(_normalise(tree), _normalise(dict(recipe or {})))
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise UsageError(f"{override!r} is not KEY=VALUE; write for example train.steps=2000.")
        _set(tree, key.strip(), value)
    return build(Config, tree)


def build(cls: type[T], values: Mapping[str, object], where: str = "") -> T:
    """Return the dataclass ``cls`` of ``values``, converted to its types; ``where`` is the key they stand under."""
    _check_keys(cls, values, where)
    try:
        return TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(part for part in (where, *map(str, first["loc"])) if part)
        raise UsageError(f"{key}={first['input']!r} does not fit: {_lower(first['msg'])}.") from None


def to_dict(config: Config) -> dict[str, Any]:
    """Return the configuration as plain data: what ``from_dict`` reads, and what is logged."""
    tree: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return tree


def from_dict(tree: Mapping[str, Any]) -> Config:
    """Return the configuration that ``to_dict`` wrote."""
    return build(Config, _normalise(dict(tree)))


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return one level of dotted keys; a choice ``{name, fields}`` becomes ``method`` and ``method.field``."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and set(value) == {"name", "fields"}:
            flat[prefix + key] = value["name"]
            flat.update(flatten(value["fields"], f"{prefix}{key}."))
        elif isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def digest(tree: object) -> str:
    """Return the sha256 (hex) of plain data, whatever the order of its keys."""
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} should hold keys and values, but it is a {type(tree).__name__}.")
    return tree


CHOICES = ("method", "net")
RENAMED = {"data.crops_per_picture": "data.crops_per_image"}  # keys of older files, which are still read


def _normalise(tree: dict[str, Any]) -> dict[str, Any]:
    """Write ``method: n2n`` and ``method: {name: n2n, loss_name: l1}`` as ``{name, fields}``, and older keys anew."""
    for old, new in RENAMED.items():
        (group, key), leaf = old.split("."), new.rpartition(".")[2]
        if isinstance(tree.get(group), Mapping) and key in tree[group]:
            tree[group] = {**tree[group], leaf: tree[group][key]}
            del tree[group][key]
    for key in CHOICES:
        value = tree.get(key)
        if isinstance(value, str):
            tree[key] = {"name": value, "fields": {}}
        elif isinstance(value, Mapping) and "fields" not in value:
            fields = {field: entry for field, entry in value.items() if field != "name"}
            tree[key] = {"name": value.get("name", getattr(Config(), key).name), "fields": fields}
    return tree


def _overlaid(tree: dict[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Lay a recipe over a tree: its values replace the tree's, a method or net as a whole."""
    laid = dict(tree)
    for key, value in recipe.items():
        below = laid.get(key)
        if key not in CHOICES and isinstance(value, Mapping) and isinstance(below, Mapping):
            laid[key] = _overlaid(dict(below), value)
        else:
            laid[key] = value
    return laid


def _set(tree: dict[str, Any], key: str, text: str) -> None:
    value: object = yaml.safe_load(text) if text else ""
    key = RENAMED.get(key, key)
    head, _, rest = key.partition(".")
    if head in CHOICES:
        choice = tree.setdefault(head, {"name": getattr(Config(), head).name, "fields": {}})
        if rest:
            choice["fields"][rest] = value
        elif choice["name"] != value:  # fields belong to the method or net they were given for
            tree[head] = {"name": value, "fields": {}}
        return
    known = flatten(to_dict(Config()))
    if key not in known:
        raise UsageError(f"{key} is not a key{nearest(key, known)}; params.yaml shows all of them.")
    node = tree
    *parents, leaf = key.split(".")
    for parent in parents:
        node = node.setdefault(parent, {})
    node[leaf] = value


def _check_keys(cls: type, values: Mapping[str, object], where: str) -> None:
    if not dataclasses.is_dataclass(cls) or cls is Choice:
        return
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key, value in values.items():
        path = f"{where}.{key}" if where else key
        if key not in fields:
            known = ", ".join(fields) or "none"
            raise UsageError(f"{path} is not a key{nearest(key, fields)}; known here: {known}.")
        kind = fields[key].type
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            if not isinstance(value, Mapping):
                raise UsageError(f"{path} should hold keys of its own, but it is {value!r}.")
            _check_keys(kind, value, path)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
