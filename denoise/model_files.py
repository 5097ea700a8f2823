"""The files of a model folder, checked before anything is built from them: they may come from anywhere."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from denoise.documents import parse_json
from denoise.errors import UserError, first_line
from denoise.fields import Augmentation
from denoise.files import file_digest

FORMAT = 2  # 1, of version 0.1.0: a cnn5 without net.features has CNN5_FEATURES
CNN5_FEATURES = 64
CARD, WEIGHTS = "model.json", "net.safetensors"
MODEL_FILES = (CARD, WEIGHTS)
TRAINING_IMAGES = "training_images.bin"  # which images it was trained on (``sharding.image_set``); not in 0.1.0
OPTIONAL_FILES = (TRAINING_IMAGES,)  # of later versions; part of the model where they are there
MAX_CARD = 16 << 20  # bytes
ModelCard = Mapping[str, Any]  # the content of model.json: how to rebuild the net, and where the weights come from

Name = Annotated[str, Field(max_length=100)]
Scalar = bool | int | float | Annotated[str, Field(max_length=100)] | None


@dataclass(frozen=True)
class _Choice:
    name: Name
    fields: dict[Name, Scalar]


@dataclass(frozen=True)
class _Part:
    name: str
    split: str
    digest: str


@dataclass(frozen=True)
class _Provenance:
    run: str | None = None
    data: tuple[_Part, ...] = ()


@dataclass(frozen=True)
class _Train:
    augment: Augmentation = ()
    crop: int | str | None = None


@dataclass(frozen=True)
class _Data:
    fixed_noise: bool = False
    noise_patch: Annotated[int, Field(ge=2, le=32)] = 8


@dataclass(frozen=True)
class _Config:
    noise: Name
    train: _Train = _Train()
    data: _Data = _Data()


@dataclass(frozen=True)
class _Range:
    low: Annotated[float, Field(allow_inf_nan=False)]
    high: Annotated[float, Field(allow_inf_nan=False)]

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError("low is not below high")


@dataclass(frozen=True)
class _Card:
    """What is read of a card; other entries, such as those of another version's configuration, may be anything."""

    method: _Choice
    net: _Choice
    channels: Literal[1, 3]
    noise: Name
    config: _Config
    provenance: _Provenance = field(default_factory=_Provenance)
    range: _Range | None = None  # the values that were 0 and 1 in training; None: the ends of each image's type


def read_card(folder: Path) -> dict[str, Any]:
    """Return the card of a model or checkpoint folder, with entries of the types that this version reads.

    A card of an older format is returned as one of this format.

    Raises:
        UserError: there is no card, or it is one of a later format, or it is none.
    """
    file = folder / CARD
    if not file.is_file():
        raise UserError(f"{folder} is no model folder: it has no {CARD}; give a folder that `denoise train` made.")
    try:
        if file.stat().st_size > MAX_CARD:
            raise ValueError(f"it has more than {MAX_CARD} bytes")
        card = parse_json(file.read_bytes())
        if not isinstance(card, dict) or type(card.get("format")) is not int or not 0 < card["format"] < 1000:
            raise ValueError("it has no format")
    except (ValueError, OSError) as error:
        reason = first_line(error)
        raise UserError(f"{file} is not a model card ({reason}); give a folder that `denoise train` made.") from None
    if card["format"] > FORMAT:
        raise UserError(
            f"{folder} has format {card['format']}, this version of denoise reads formats up to {FORMAT}; update it."
        )
    try:
        TypeAdapter(_Card).validate_python(card)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        key, reason = ".".join(map(str, first["loc"])), first["msg"]
        raise UserError(
            f"{file} is damaged: {key[:200]}: {reason[:1].lower()}{reason[1:]}; fetch or train the model again."
        ) from None
    return card if card["format"] == FORMAT else _upgraded(card)


def _upgraded(card: dict[str, Any]) -> dict[str, Any]:
    """Return a card of format 1 as one of this format, which restores and trains on with the same net."""
    net, config = card["net"], card["config"]
    if net["name"] == "cnn5":
        net = {**net, "fields": {"features": CNN5_FEATURES, **net["fields"]}}
    if config.get("net") == card["net"]:
        config = {**config, "net": net}
    return {**card, "format": FORMAT, "net": net, "config": config}


def model_files(folder: Path) -> list[Path]:
    """Return the files that make the model in a folder, always in the same order.

    Raises:
        UserError: one is missing.
    """
    for name in MODEL_FILES:
        if not (folder / name).is_file():
            raise UserError(f"{folder} is no model folder: it has no {name}.")
    return [folder / name for name in (*MODEL_FILES, *OPTIONAL_FILES) if (folder / name).is_file()]


def model_digest(folder: Path) -> str:
    """Return the sha256 (hex) of a model folder, over the digests of its files.

    Raises:
        UserError: a file is missing.
    """
    digest = hashlib.sha256()
    for file in model_files(folder):
        digest.update(bytes.fromhex(file_digest(file)))
    return digest.hexdigest()
