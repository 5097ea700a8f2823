"""Preview of a data set: counts, sizes, and a contact sheet of its images."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoise.config import Config
from pipelines.datasets.layout import open_set

if TYPE_CHECKING:
    from PIL.Image import Image

    from denoise.data.shards import Shards

MAX_IMAGES = 24  # of a split, on the sheet
COLUMNS, SIDE, GAP, CAPTION = 6, 160, 8, 16  # of the sheet, in pixels


def describe(config: Config, name: str, split: str) -> dict[str, Any]:
    """Return counts and sizes of one split, from its index and its lists of samples."""
    shards = open_set(config, split, name)
    sides: Counter[tuple[int, int]] = Counter()
    modes: Counter[str] = Counter()
    views: Counter[str] = Counter()
    for number in range(len(shards.entries)):
        for sample in shards.samples(number):
            views[", ".join(sample["views"])] += 1
            for view in sample["views"].values():
                sides[view["width"], view["height"]] += 1
                modes[view["mode"]] += 1
    widths, heights = zip(*sides, strict=True)
    return {
        "split": split,
        "place": shards.name,
        "samples": len(shards),
        "shards": len(shards.entries),
        "bytes": sum(entry["bytes"] for entry in shards.entries),
        "digest": shards.digest,
        "views": dict(views),
        "modes": dict(modes),
        "range": None if shards.value_range is None else [shards.value_range.low, shards.value_range.high],
        "sizes": {f"{width}x{height}": count for (width, height), count in sides.most_common(5)},
        "smallest_side": min(*widths, *heights),
        "largest_side": max(*widths, *heights),
    }


def table(splits: Iterable[Mapping[str, Any]]) -> str:
    """Return the descriptions of splits as text."""
    lines = []
    for split in splits:
        sizes = ", ".join(f"{size} ({count})" for size, count in split["sizes"].items())
        modes = ", ".join(f"{mode} ({count})" for mode, count in split["modes"].items())
        lines += [
            f"{split['split']}: {split['samples']} samples in {split['shards']} shards, {split['bytes'] / 1e6:.1f} MB",
            f"  at       {split['place']}",
            f"  version  {split['digest']}",
            f"  views    {', '.join(split['views'])}",
            f"  kinds    {modes}",
            *([f"  range    {split['range'][0]:g} to {split['range'][1]:g}"] if split["range"] else []),
            f"  sizes    {sizes}; sides from {split['smallest_side']} to {split['largest_side']}",
        ]
    return "\n".join(lines)


def contact_sheet(config: Config, name: str, splits: Sequence[str], target: Path) -> Path:
    """Draw images spread evenly over each split into ``target``, and return that."""
    from PIL import Image, ImageDraw

    tiles: list[tuple[str, Image.Image]] = []
    for split in splits:
        shards = open_set(config, split, name)
        count = min(MAX_IMAGES, len(shards))
        tiles += [(f"{split}/{label}", small) for label, small in _thumbnails(shards, count)]
    rows = -(-len(tiles) // COLUMNS)
    size = (GAP + COLUMNS * (SIDE + GAP), GAP + rows * (SIDE + CAPTION + GAP))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for position, (label, small) in enumerate(tiles):
        left = GAP + position % COLUMNS * (SIDE + GAP)
        top = GAP + position // COLUMNS * (SIDE + CAPTION + GAP)
        sheet.paste(small, (left + (SIDE - small.width) // 2, top + (SIDE - small.height) // 2))
        draw.text((left, top + SIDE + 2), label[-26:], fill="black")
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(target)
    return target


def _thumbnails(shards: "Shards", count: int) -> "Iterable[tuple[str, Image]]":
    from PIL import Image

    for position in range(count):
        index = position * len(shards) // count
        sample = shards.describe(index)
        view = next(iter(sample["views"]))
        pixels = shards.pixels(index, view)
        if shards.value_range is not None:
            pixels = (shards.value_range.to_unit(pixels).clip(0, 1) * 255).round().astype("uint8")
        elif pixels.dtype != "uint8":
            pixels = (pixels // 257).astype("uint8")
        small = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
        small.thumbnail((SIDE, SIDE))
        yield Path(sample["name"]).name, small
