"""What was estimated without clean images: as lines, and as a page with the residuals and their autocorrelation."""

import base64
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.report.correlation import draw_map
from pipelines.report.template import page_template

if TYPE_CHECKING:
    from torch import Tensor

    from denoise.estimate import EstimatedImage

SHOWN = 4  # images on the page
MAX_SIDE = 512  # pixels; a larger image is shown by its middle
MIDDLE = 128  # grey of a residual of 0
SPREAD = 3.5  # standard deviations of the residual between grey and black or white
STRUCTURE = 0.05  # difference of autocorrelations from which the residual is said to hold more than noise


def estimate_lines(result: dict[str, Any]) -> Iterator[str]:
    """Return an estimate in words: the figure with its intervals, what it assumes, and what the residual shows."""
    estimate = result["estimate"]
    yield f"{result['method']} {result['data']}: {headline(estimate)}"
    yield f"  by {estimate['source']}, if {estimate['assumption']}"
    yield f"  the intervals cover {estimate['covers']}; they do not cover {estimate['does_not_cover']}"
    yield f"  {verdict(estimate['residual'])}"
    for caution in estimate["cautions"]:
        yield f"  warning: {caution}"


def headline(estimate: dict[str, Any]) -> str:
    """Return the estimated PSNR with its intervals as one sentence without a full stop."""
    used, unresolved = estimate["images_used"], estimate["images_unresolved"]
    if estimate["estimated_psnr"] is None:
        return f"no PSNR can be estimated: the noise hides the error of all {used} images"
    text = f"PSNR estimated as {estimate['estimated_psnr']:.2f} dB (90 %: {_range(estimate['interval'])} on these"
    if estimate["interval_alike"] is not None:
        text += f" {used} images, {_range(estimate['interval_alike'])} on all such images)"
    else:
        text += " images)" if used > 1 else " places of one image)"
    if unresolved:
        text += f"; {unresolved} of {used} images are left out, whose errors are too small to be told from 0"
    return text


def verdict(residual: dict[str, Any]) -> str:
    """Return what the autocorrelation of the residual says of the denoiser, as one sentence without a full stop."""
    excess, (down, right) = residual["excess"], residual["lag"]
    where = f"{abs(down)} pixels down and {abs(right)} across"
    if abs(excess) < STRUCTURE:
        return (
            f"the residual is as correlated as the noise, within {STRUCTURE:.2f} at every distance: nothing else shows"
        )
    if excess > 0:
        return (
            f"the residual is more correlated than the noise, by {excess:.2f} at {where}: detail was removed with the "
            "noise"
        )
    return (
        f"the residual is less correlated than the noise, by {-excess:.2f} at {where}: noise of that scale was left in "
        "the images, or fine detail was removed"
    )


def residual_page(result: dict[str, Any], images: "Sequence[EstimatedImage]") -> str:
    """Return a page that needs no other file: noisy, restored, residual, and the autocorrelation of the residual."""
    estimate = result["estimate"]
    residual = estimate["residual"]
    return page_template("residual.html.jinja").render(
        title=f"{result['method']} on {result['data']}: what was removed",
        headline=_sentence(headline(estimate)),
        verdict=_sentence(verdict(residual)),
        estimate=estimate,
        result=result,
        cautions=[_sentence(caution) for caution in estimate["cautions"]],
        maps=[
            draw_map("of the residual", residual["correlation"]),
            draw_map("of the noise", residual["noise_correlation"]),
        ],
        images=[_panels(image) for image in images[:SHOWN]],
        max_side=MAX_SIDE,
    )


def _range(interval: Sequence[float]) -> str:
    return f"{interval[0]:.2f} to {interval[1]:.2f}"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _panels(image: "EstimatedImage") -> dict[str, Any]:
    residual = image.noisy - image.restored
    gain = 1 / (2 * SPREAD * max(float(residual.std()), 1 / 255))
    psnr = image.error.psnr
    shown = {
        "noisy": image.noisy,
        f"restored, {'error too small to estimate' if psnr is None else f'{psnr:.2f} dB estimated'}": image.restored,
        f"noisy less restored, {gain:.1f} times as strong around grey": residual * gain + MIDDLE / 255,
    }
    return {"name": image.name, "panels": [_embed(image.name, title, pixels) for title, pixels in shown.items()]}


def _embed(name: str, title: str, image: "Tensor") -> dict[str, Any]:
    from pipelines.report.figures import as_image, crop_centre, encode_png

    pixels = crop_centre(as_image(image), MAX_SIDE)
    source = f"data:image/png;base64,{base64.b64encode(encode_png(pixels)).decode()}"
    return {"source": source, "title": title, "alt": f"{name}, {title}", "width": pixels.width, "height": pixels.height}
