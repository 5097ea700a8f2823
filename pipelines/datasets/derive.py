"""Sets derived from others: the centres of their images, or a part of them as validation images."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from denoise.config import Config
from denoise.documents import parse_json
from denoise.errors import UsageError, UserError
from denoise.fields import SPLITS, set_and_split
from denoise.files import require_name, write_json
from pipelines.console import say
from pipelines.datasets.layout import SET, open_set, set_path, shard_folder
from pipelines.datasets.made_images import Encoded, MadeSample, encoded, shard_made
from pipelines.datasets.prepare import make_missing

if TYPE_CHECKING:
    from denoise.data.index import SampleEntry
    from denoise.data.shards import Shards
    from denoise.images.tensors import Pixels
    from denoise.sharding.plan import SampleFilter


class Derivation(Protocol):
    """How a set is made of another one."""

    @property
    def source(self) -> str:
        """SET/SPLIT of the images."""
        ...

    @property
    def split(self) -> str:
        """The split that they become."""
        ...

    @property
    def cut(self) -> int | None:
        """Side of the square cut from the centre of each image, where smaller images are left out; None: whole."""
        ...

    @property
    def val_share(self) -> float | None:
        """The share of the images, evenly spread over them, that becomes the val split."""
        ...


def derive(config: Config, name: str, derivation: Derivation, sample_filter: "SampleFilter | None" = None) -> None:
    """Make a set of the images of another, unless it is there, made of the same images in the same way.

    Images keep their names, and views of one scene stay together. A cut is stored as PNG, upright, grey as grey; whole
    images keep their bytes. A source that is missing is fetched and sharded, from ``data.mirror`` if that is given.

    Args:
        config: where the data is.
        name: the set to make.
        derivation: of which images, and how.
        sample_filter: which images of the source are taken, by their size before a cut and their colour.

    Raises:
        UsageError: a derivation that contradicts itself.
        UserError: the source is missing and cannot be fetched, no image is left, or another set has that name.
    """
    _check(name, derivation)
    splits = _splits(derivation)
    if config.data.url is not None:
        for split in splits:
            _require_remote(config, name, split)
        return
    root = Path(config.data.root)
    record = root / "derived" / f"{set_path(derivation.split, name)}.json"
    known = _read(record)
    _refuse_other_set(config, name, splits, known)
    settings = _settings(derivation, sample_filter)
    if _is_made(config, name, splits, known, settings):
        return
    source = make_missing(config, "", derivation.source)
    _refuse_range(source, derivation.source)
    parts = _divide(source, derivation, sample_filter)
    made: dict[str, str | None] = dict.fromkeys(splits)  # None: being made
    content = {"settings": settings, "source_version": source.digest, "made": made}
    write_json(record, content)
    for split, indices in parts.items():
        shard_made(name, split, root, _samples(source, indices, derivation.cut), len(indices), config.data.shard_mb)
        made[split] = open_set(config, split, name).digest
    write_json(record, content)


def _check(name: str, derivation: Derivation) -> None:
    require_name(name, SET)
    dataset, split = set_and_split(derivation.source, "")
    if not split:
        raise UsageError(f"say which split of {dataset} the images are from, for example {dataset}/test.")
    if derivation.split not in SPLITS:
        raise UsageError(f"{derivation.split} is no split; use train, val or test.")
    if dataset == name:
        raise UsageError(f"a set cannot be made of itself; give the one made of {derivation.source} another name.")
    if derivation.val_share is not None and (derivation.split != "train" or not 0 < derivation.val_share < 1):
        raise UsageError(
            f"a share of {derivation.val_share:g} for validation leaves the rest for training: it should be between 0 "
            "and 1, and the split train."
        )


def _splits(derivation: Derivation) -> tuple[str, ...]:
    return (derivation.split,) if derivation.val_share is None else ("train", "val")


def _settings(derivation: Derivation, sample_filter: "SampleFilter | None") -> dict[str, Any]:
    from dataclasses import asdict

    from denoise.sharding.plan import ALL_IMAGES

    return {
        "source": derivation.source,
        "cut": derivation.cut,
        "val_share": derivation.val_share,
        **asdict(sample_filter or ALL_IMAGES),
    }


def _read(record: Path) -> Mapping[str, Any]:
    """Return what a record says; nothing where there is none, or it is damaged."""
    with suppress(OSError, ValueError):
        tree = parse_json(record.read_bytes())
        if isinstance(tree, dict) and isinstance(tree.get("made"), dict):
            return tree
    return {"made": {}}


def _refuse_other_set(config: Config, name: str, splits: Sequence[str], known: Mapping[str, Any]) -> None:
    """Refuse a name under which there is a set that this program has not derived."""
    for split in splits:
        folder = shard_folder(Path(config.data.root), split, name)
        made = known["made"].get(split, "")
        if folder.is_dir() and made is not None and made != open_set(config, split, name).digest:
            raise UserError(
                f"{folder} holds another set of that name, which would be lost; delete it, or give the new one another "
                "name."
            )


def _is_made(
    config: Config, name: str, splits: Sequence[str], known: Mapping[str, Any], settings: Mapping[str, Any]
) -> bool:
    """Return whether the set is there, as it was made of the source that is there now with these settings."""
    root, source = Path(config.data.root), settings["source"]
    if known.get("settings") != settings or not all(known["made"].get(split) for split in splits):
        return False
    if not all(shard_folder(root, split, name).is_dir() for split in splits):
        return False
    # Without its source the set is as good as ever.
    is_there = shard_folder(root, "", source).is_dir()
    return not is_there or bool(open_set(config, "", source).digest == known.get("source_version"))


def _refuse_range(source: "Shards", name: str) -> None:
    if source.value_range is not None:
        raise UserError(
            f"{name} has a range of values, and no set is derived of such a one; make two sets of the files, with "
            "`denoise shard NAME --from FOLDER`."
        )


def _divide(source: "Shards", derivation: Derivation, sample_filter: "SampleFilter | None") -> dict[str, Sequence[int]]:
    """Return the samples of each new split, by their indices in the source.

    Raises:
        UserError: there are none for a split.
    """
    kept = [index for index in range(len(source)) if _is_wanted(source.describe(index), derivation.cut, sample_filter)]
    if left_out := len(source) - len(kept):
        say(f"{left_out} of {len(source)} images of {derivation.source} were left out for their size or colour.")
    parts: dict[str, Sequence[int]] = {derivation.split: kept}
    if derivation.val_share is not None:
        share = Fraction(str(derivation.val_share))  # exact, where 0.2 as a float is not
        chosen = [int((position + 1) * share) > int(position * share) for position in range(len(kept))]
        parts = {
            split: [index for index, is_val in zip(kept, chosen, strict=True) if is_val == (split == "val")]
            for split in _splits(derivation)
        }
    for split, indices in parts.items():
        if not indices:
            raise UserError(
                f"no image of {derivation.source} is left for the {split} split (it has {len(source)}); choose a "
                "smaller cut, other limits or another share."
            )
    return parts


def _is_wanted(sample: "SampleEntry", cut: int | None, sample_filter: "SampleFilter | None") -> bool:
    views = sample["views"].values()
    if sample_filter is not None and any(sample_filter.excludes(view) for view in views):
        return False
    return all(min(view["width"], view["height"]) >= (cut or 0) for view in views)


def _samples(source: "Shards", indices: Sequence[int], cut: int | None) -> Iterator[MadeSample]:
    for index in indices:
        sample = source.describe(index)
        views: dict[str, Pixels | Encoded] = {}
        for view in sample["views"]:
            views[view] = (
                encoded(source.encoded(index, view)) if cut is None else _centre(source.pixels(index, view), cut)
            )
        yield MadeSample(sample["name"], views)


def _centre(pixels: "Pixels", side: int) -> "Pixels":
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]


def _require_remote(config: Config, name: str, split: str) -> None:
    try:
        open_set(config, split, name)
    except UserError as error:
        reason = str(error).removesuffix(".")
        raise UserError(f"{reason} (a derived set is made without data.url).") from None
