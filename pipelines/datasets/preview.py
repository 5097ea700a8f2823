"""What a data set holds: counts, sizes, and a contact sheet of its images."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoise.config import Config
from pipelines.datasets.layout import open_set

if TYPE_CHECKING:
    from PIL.Image import Image

    from denoise.data.shards import Shards

SHOWN = 24  # images of a split
COLUMNS, SIDE, GAP, CAPTION = 6, 160, 8, 16  # of the sheet, in pixels


def describe(config: Config, name: str, split: str) -> dict[str, Any]:
    """Return what the index of one split says."""
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
        "sizes": {f"{width}x{height}": count for (width, height), count in sides.most_common(5)},
        "smallest_side": min(*widths, *heights),
        "largest_side": max(*widths, *heights),
    }


def table(splits: Iterable[Mapping[str, Any]]) -> str:
    """Return the same as text for people."""
    lines = []
    for one in splits:
        sizes = ", ".join(f"{size} ({count})" for size, count in one["sizes"].items())
        modes = ", ".join(f"{mode} ({count})" for mode, count in one["modes"].items())
        lines += [
            f"{one['split']}: {one['samples']} samples in {one['shards']} shards, {one['bytes'] / 1e6:.1f} MB",
            f"  at       {one['place']}",
            f"  version  {one['digest']}",
            f"  views    {', '.join(one['views'])}",
            f"  kinds    {modes}",
            f"  sizes    {sizes}; sides from {one['smallest_side']} to {one['largest_side']}",
        ]
    return "\n".join(lines)


def contact_sheet(config: Config, name: str, splits: Sequence[str], target: Path) -> Path:
    """Draw images spread evenly over each split, and return the file."""
    from PIL import Image, ImageDraw

    tiles: list[tuple[str, Image.Image]] = []
    for split in splits:
        shards = open_set(config, split, name)
        count = min(SHOWN, len(shards))
        tiles += [(f"{split}/{label}", small) for label, small in _thumbnails(shards, count)]
    rows = -(-len(tiles) // COLUMNS)
    size = (GAP + COLUMNS * (SIDE + GAP), GAP + rows * (SIDE + CAPTION + GAP))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for place, (label, small) in enumerate(tiles):
        left = GAP + place % COLUMNS * (SIDE + GAP)
        top = GAP + place // COLUMNS * (SIDE + CAPTION + GAP)
        sheet.paste(small, (left + (SIDE - small.width) // 2, top + (SIDE - small.height) // 2))
        draw.text((left, top + SIDE + 2), label[-26:], fill="black")
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(target)
    return target


def _thumbnails(shards: "Shards", count: int) -> "Iterable[tuple[str, Image]]":
    from PIL import Image

    for place in range(count):
        index = place * len(shards) // count
        sample = shards.describe(index)
        view = next(iter(sample["views"]))
        pixels = shards.pixels(index, view)
        if pixels.dtype != "uint8":
            pixels = (pixels // 257).astype("uint8")
        small = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
        small.thumbnail((SIDE, SIDE))
        yield Path(sample["name"]).name, small
