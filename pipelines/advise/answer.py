"""What ``denoise advise`` answers: a document for programs, and text for people."""

from collections.abc import Iterator
from typing import Any

from denoise.noise_meter import NoiseMeasurement
from pipelines.advise.advice import UNCORRELATED, Advice, ratio, reach, stripes
from pipelines.advise.folder import FolderNoise

LEVELS = 255.0  # sigma is shown in the unit of 8-bit images
ROUNDED = 4  # digits behind the point of a correlation


def document(found: FolderNoise, advice: Advice) -> dict[str, Any]:
    """Return measurement and advice as plain data; levels are of values in [0, 1]."""
    noise = found.noise
    points = zip(noise.brightness.tolist(), noise.variance.tolist(), strict=True)
    return {
        "samples": found.samples,
        "pairs": found.pairs,
        "clean": found.clean,
        "series": found.series,
        "channels": found.channels,
        "smallest": list(found.sizes[0]),
        "largest": list(found.sizes[1]),
        "measured_images": noise.images,
        "measured_blocks": noise.blocks,
        "sigma": noise.sigma(),
        "variance": {
            "slope": noise.slope,
            "offset": noise.offset,
            "points": [{"brightness": x, "variance": y} for x, y in points],
        },
        "correlation": [[round(value, ROUNDED) for value in row] for row in noise.correlation.tolist()],
        "channel_correlation": [[round(value, ROUNDED) for value in row] for row in noise.channels.tolist()],
        "stripes": stripes(noise) or None,
        "saturated": found.saturated,
        "jpeg": found.jpeg,
        "method": advice.method or None,
        "why": advice.why,
        "commands": list(advice.commands),
        "unfit": [{"methods": methods, "why": why} for methods, why in advice.unfit],
        "warnings": list(advice.warnings),
    }


def text(found: FolderNoise, advice: Advice) -> str:
    """Return measurement and advice for people."""
    lines = [f"{label:<14}{value}" for label, value in measured(found)]
    take = f"take {advice.method}" if advice.method else "take no method"
    lines += ["", f"{take}: {advice.why}.", *(f"    {command}" for command in advice.commands)]
    lines += [f"not {methods}: they {why}." for methods, why in advice.unfit]
    lines += [f"warning: {warning}." for warning in advice.warnings]
    return "\n".join(lines)


def measured(found: FolderNoise) -> Iterator[tuple[str, str]]:
    """Yield what was measured as names and values for people."""
    noise = found.noise
    kind = {1: "grey", 3: "colour"}[found.channels]
    sizes = " to ".join(dict.fromkeys(f"{width}x{height}" for height, width in found.sizes))
    second = [f"{found.pairs} with a second image"] * bool(found.pairs)
    clean = [f"{found.clean} with a clean one"] * bool(found.clean)
    series = ["frames of one scene"] * found.series
    yield "images", ", ".join([f"{found.samples} of {kind}, {sizes}", *second, *clean, *series])
    yield "measured", f"{noise.blocks} flat blocks of {noise.images} images"
    yield "level", f"sigma {LEVELS * noise.sigma():.1f} of 255; {_against_brightness(found)}"
    yield "correlation", _correlation(noise)
    if found.channels > 1:
        red_green, green_blue = noise.channels[0, 1].item(), noise.channels[1, 2].item()
        yield "channels", f"correlation {red_green:.2f} of red and green, {green_blue:.2f} of green and blue"
    if striped := stripes(noise):
        yield "stripes", f"along {striped}"
    yield "saturated", f"{found.saturated:.1%} of the values"
    yield "JPEG blocks", f"steps between blocks are {max(0.0, found.jpeg):.0%} larger than within"


def _correlation(noise: NoiseMeasurement) -> str:
    beside = f"{noise.lag(0, 1):.2f} with the pixel to the right, {noise.lag(1, 0):.2f} below"
    if noise.neighbours <= UNCORRELATED:
        return f"{beside}: none"
    down, right = reach(noise)
    return f"{beside}, {noise.lag(1, 1):.2f} diagonal; above {UNCORRELATED} for {right} pixels along rows, {down} down"


def _against_brightness(found: FolderNoise) -> str:
    noise = found.noise
    low, high = noise.brightness.min().item(), noise.brightness.max().item()
    if len(noise.brightness) == 1:
        return f"of one brightness only, {low:.2f} of 1"
    levels = [f"{LEVELS * noise.sigma(at):.1f} at {at:.2f}" for at in (low, high)]
    return f"{levels[0]} to {levels[1]} of the range ({ratio(noise):.2f} times)"
