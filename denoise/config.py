"""The configuration: one tree of frozen dataclasses, read from params.yaml and ``key=value`` overrides."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from denoise.documents import build, check_keys, read_mapping, value_of
from denoise.errors import UsageError, nearest
from denoise.fields import (
    Augmentation,
    AutoYesNo,
    Count,
    Decay,
    Names,
    Positive,
    Seed,
    SetNames,
    Share,
    at_most_32768,
    auto_or_count,
    not_empty,
)
from denoise.redaction import redacted


@dataclasses.dataclass(frozen=True)
class Choice:
    """Something chosen by name, with fields of its own: ``method=n2n method.loss_name=l1``."""

    name: str
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Data:
    """Which images, and how they are read."""

    root: str = "data"  # folder of downloads/, raw/ and shards/
    # sets whose train, val and test split is trained on, validated on and evaluated on; SET/SPLIT for another split
    train: Annotated[SetNames, AfterValidator(not_empty)] = ("samples",)
    val: SetNames = ("samples",)
    test: SetNames = ("samples",)
    colour: Literal["rgb", "grey"] = "rgb"
    mirror: str | None = None  # folder or address to fetch from instead of the official sites
    min_side: Positive | None = None  # imagenet only: keep images with both sides in min_side..max_side
    max_side: Positive | None = None
    shard_mb: Positive = 256  # size at which a shard is closed
    url: str | None = None  # s3://BUCKET/PREFIX, http(s)://... or a folder to read shards from; None: root
    disk_gb: Annotated[float, Field(gt=0, le=1e9)] = 50  # shards from url that a machine keeps on its disk
    cache_mb: Count = 2048  # decoded images that the workers of a machine share in memory
    streams: Positive = 64  # canonical streams of shards that are read side by side
    window: Positive = 4  # successive shards of a stream that samples are drawn from
    crops_per_image: Positive = 1  # successive samples of a batch that are cut from one image
    small: Literal["pad", "leave_out"] = "pad"  # images smaller than a crop: pad by reflection, or leave out
    threads: Annotated[int, Field(ge=1, le=1024)] = 2  # threads that decode, in each worker
    quarantine: Count = 0  # damaged samples that may be left out; 0: the first one ends the run
    noise_patch: Annotated[int, Field(ge=2, le=32)] = 8  # noise=none: side of the patches that sigma is estimated by
    pairs: Literal["stored", "next"] = "stored"  # noise=none: the second image of a scene, or the next of the folder
    fixed_noise: bool = False  # one noisy realisation of each image instead of fresh noise every step
    allow_overlap: Names = ()  # test sets that may share images with the training sets

    @property
    def channels(self) -> int:
        """3 for rgb, 1 for grey."""
        return 3 if self.colour == "rgb" else 1


@dataclasses.dataclass(frozen=True)
class Train:
    """How long and how fast. A step is one optimizer step on one global batch."""

    steps: Positive = 500
    batch_size: Annotated[int, Field(ge=1, le=1 << 20)] = 4  # global: shared by all ranks
    # side of the square training crops, in pixels; auto: 128 for a net with a blind spot that pools, 64 for others
    crop: Annotated[Literal["auto"] | int, BeforeValidator(auto_or_count), AfterValidator(at_most_32768)] = "auto"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"  # eps 1e-8
    betas: tuple[Decay, Decay] = (0.9, 0.99)  # adam and adamw
    momentum: Decay = 0.0  # sgd
    weight_decay: Annotated[float, Field(ge=0)] | None = None  # None: torch's default, 0.01 for adamw and 0 for others
    schedule: str = "ramp"
    rampup: Share = 0.1  # ramp: share of the steps
    rampdown: Share = 0.5
    milestones: tuple[Share, ...] = (0.5,)  # multistep: shares of the steps after which lr is multiplied by gamma
    gamma: Annotated[float, Field(gt=0)] = 0.5
    augment: Augmentation = ()  # flip (left-right), flip_vertical (up-down), rotate (quarter turns)
    ema: Decay = 0.0  # decay of the average of the weights that the model is made of; 0: the weights themselves
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: bf16 if the hardware has it
    channels_last: bool = True
    fused: bool = True  # one kernel for all parameters in the optimizer
    teacher: str | None = None  # of method=distil: a model folder, or models:/NAME@ALIAS
    compile: AutoYesNo = "auto"  # torch.compile: a minute at start; auto: on a GPU, for ssdn
    cuda_graphs: bool = False  # launch a whole step on a GPU as one CUDA graph, for small batches
    static_graph: bool = True  # tell DDP that every step runs the same graph; not with a micro-batch
    deterministic: bool = False  # the same bits on a GPU, at some cost; a CPU gives them anyway
    micro_batch: Positive | None = None  # crops that a worker computes at once, of its share of a batch; None: all
    oom: Literal["stop", "halve"] = "stop"  # when a GPU's memory is full: stop, or halve the micro-batch
    skip_nonfinite: Count = 0  # steps without a finite loss that may be skipped; 0: the first one ends the run
    val_loss: bool = False  # also validate with the method's own loss, which needs no clean images
    val_images: Positive = 8  # images that are validated on: the first ones of data.val
    train_psnr: bool = False  # also log the PSNR of restored training crops, where there are clean ones
    model: Literal["last", "best"] = "last"  # the checkpoint that becomes the model: the last, or the best in val_psnr
    log_every: Positive = 50
    eval_every: Positive = 100
    checkpoint_every: Positive = 100

    @property
    def crop_pixels(self) -> int:
        """The side of the crops, once ``auto`` has been settled for a net (``denoise.methods.with_net``)."""
        if self.crop == "auto":
            raise ValueError("train.crop=auto has no number before the net is known")
        return self.crop

    @property
    def decay(self) -> float:
        """The weight decay: what is given, else torch's default for the optimizer."""
        default = 0.01 if self.optimizer == "adamw" else 0.0
        return default if self.weight_decay is None else self.weight_decay


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """How results are scored."""

    protocol: str = "float"
    passes: Positive | None = None  # passes averaged for each image; None: as many as the method's paper averages
    average: bool = False  # average over the flips and turns that training augmented with
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # auto: that of training, as far as the hardware has it
    noise: str | None = None  # added to clean images; None: the noise that the model was trained for
    assumed_level: Annotated[float, Field(gt=0, le=100)] = 1.0  # the level that the model is told, over the true one
    tile: Positive | None = None  # side of tiles to restore by; None: whole images, unless the net needs tiles
    overlap: Count | None = None  # of the tiles; None: 64, at most half of a tile
    images: Positive | None = None  # of each set, evenly spread over it; None: all


@dataclasses.dataclass(frozen=True)
class Ray:
    """Where training runs, and on how many workers."""

    address: str | None = None  # of a running cluster; None: RAY_ADDRESS, else a cluster on this machine
    # auto: one for each GPU, without GPUs for each core, at most one for each crop of a batch
    workers: Annotated[Literal["auto"] | int, BeforeValidator(auto_or_count)] = "auto"
    min_workers: Positive | None = None  # run with so few while there is no room for all; None: wait for all
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    gpu: AutoYesNo = "auto"  # auto: where all get one
    gpus_per_worker: Annotated[float, Field(gt=0, le=1)] = 1  # below 1, trainings of one worker share a GPU
    storage: str = "runs/ray"  # folder or s3:// address of checkpoints
    max_failures: Count = 3  # worker failures that a run survives
    keep_checkpoints: Positive = 2  # the newest; the best is kept as well
    timeout: Annotated[float, Field(gt=0, le=1e6)] = 600  # seconds that workers wait for one that does not answer

    @property
    def worker_count(self) -> int:
        """The number of workers, once ``auto`` has been settled for a cluster."""
        if self.workers == "auto":
            raise ValueError("ray.workers=auto has no number before the cluster is known")
        return self.workers


@dataclasses.dataclass(frozen=True)
class Tracking:
    """Where MLflow records."""

    uri: str = "sqlite:///mlflow.db"
    experiment: str = "denoise"


@dataclasses.dataclass(frozen=True)
class Tune:
    """Where Optuna keeps the trials of sweeps."""

    storage: str = "sqlite:///optuna.db"  # postgresql://... if several machines start sweeps; or journal:FILE


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything, in the shape of params.yaml."""

    preset: str | None = None  # a published recipe laid over params.yaml
    seed: Seed = 0
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
    params: Path | None = None, overrides: Iterable[str] = (), *recipes: Mapping[str, Any] | None
) -> Config:
    """Return the configuration of params.yaml (the defaults without one), overlaid with recipes and with overrides.

    Of a key that several set, the last counts; a method or net is replaced as a whole.

    Raises:
        UsageError: an override that is not ``key=value``, an unknown key, or an invalid value.
    """
    tree = _normalise(read_mapping(params) if params is not None and params.exists() else {})
    for recipe in recipes:
        tree = _overlaid(tree, _normalise(dict(recipe or {})))
    check_keys(Config, tree)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise UsageError(f"{override!r} is not KEY=VALUE; write for example train.steps=2000.")
        _set(tree, key.strip(), value)
    return build(Config, tree)


def to_dict(config: Config) -> dict[str, Any]:
    """Return the configuration as plain data, which ``from_dict`` reads; it may hold passwords: see ``recorded``."""
    return dict(json.loads(json.dumps(dataclasses.asdict(config))))


def recorded(config: Config) -> dict[str, Any]:
    """Return the configuration as plain data without passwords: what is logged and what model cards hold."""
    return dict(redacted(to_dict(config)))


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
    """Return the sha256 (hex) of plain data; the order of keys does not matter."""
    text = json.dumps(tree, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


CHOICES = ("method", "net")
RENAMED = {"data.crops_per_picture": "data.crops_per_image"}  # keys of older files, still accepted


def _normalise(tree: dict[str, Any]) -> dict[str, Any]:
    """Turn ``method: n2n`` and ``method: {name: n2n, loss_name: l1}`` into ``{name, fields}``, and rename old keys."""
    for old, new in RENAMED.items():
        (group, key), leaf = old.split("."), new.rpartition(".")[2]
        if isinstance(tree.get(group), Mapping) and key in tree[group]:
            tree[group] = {**tree[group], leaf: tree[group][key]}
            del tree[group][key]
    for key in CHOICES:
        value = tree.get(key)
        if isinstance(value, str):
            tree[key] = {"name": value, "fields": {}}
        elif isinstance(value, Mapping) and not isinstance(value.get("fields"), Mapping):
            fields = {field: entry for field, entry in value.items() if field != "name"}
            tree[key] = {"name": value.get("name", getattr(Config(), key).name), "fields": fields}
    return tree


def _overlaid(tree: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree with the values of a recipe; a method or net is replaced as a whole."""
    merged = dict(tree)
    for key, value in recipe.items():
        nested = key not in CHOICES and isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _overlaid(merged[key], value) if nested else value
    return merged


def _set(tree: dict[str, Any], key: str, text: str) -> None:
    value = value_of(text.strip())
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
    group, _, leaf = key.rpartition(".")
    (tree.setdefault(group, {}) if group else tree)[leaf] = value
