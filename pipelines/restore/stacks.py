"""Restore a stack plane by plane: look at all planes first, then write a file of the same kind.

A plane of one value has nothing to restore and is copied, as are the channels that are not asked for. A plane with
values that are no number is refused, or copied where the rest shall be restored all the same. All of it is told.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from denoise.errors import UserError
from pipelines.console import Advance, progress, say

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from denoise.denoiser import Denoiser
    from denoise.images.tiles import Tiles
    from denoise.stacks.options import StackOptions
    from denoise.stacks.stack import Stack
    from denoise.stacks.survey import Survey
    from denoise.stacks.value_range import ValueRange

RestorePlane = Callable[["NDArray[Any]", "ValueRange"], "np.ndarray[Any, Any]"]


@dataclass(frozen=True)
class StackJob:
    """A stack to restore, its planes looked at."""

    source: Path
    target: Path
    options: "StackOptions"
    value_range: "ValueRange"
    copied: frozenset[int]  # numbers of planes that are not restored
    tiles: int  # of the others


def inspect_stack(
    source: Path, target: Path, denoiser: "Denoiser", tiles: "Tiles", options: "StackOptions", keep_going: bool
) -> StackJob:
    """Look at all planes of a stack, tell what needs a word, and choose the range of its values.

    Raises:
        UserError: it cannot be read, a plane holds values that are no number (unless ``keep_going``), or all are of one
            value.
    """
    from denoise.stacks.kinds import check_stack_target
    from denoise.stacks.opening import open_stack

    check_stack_target(source, target)
    if denoiser.deviation:
        raise UserError(f"{source} is a stack, of which no deviations are written; give images, or no --deviation.")
    with open_stack(source, options.axes, options.channels) as stack:
        total, copied = _look(stack, keep_going)
        for remark in (*stack.remarks, *_remarks(source, total)):
            say(f"warning: {remark}.")
        value_range = _choose_range(stack, denoiser, options.value_range, total)
        height, width, _ = stack.layout.plane_shape
        count = (len(stack) - len(copied)) * tiles.count(height, width)
        return StackJob(source, target, options, value_range, frozenset(copied), count)


def restore_stack(job: StackJob, restore: RestorePlane, advance: Advance) -> None:
    """Restore a stack into a file of the same kind, of which a few planes are in memory."""
    from denoise.stacks.opening import open_stack

    with open_stack(job.source, job.options.axes, job.options.channels) as stack, stack.create(job.target) as sink:
        for number in stack.order:
            plane = stack.plane(number)
            if number not in job.copied:
                advance(0, note=stack.name(number))
                plane = restore(plane, job.value_range)
            sink[stack.layout.index(number)] = stack.layout.from_plane(plane)


def _look(stack: "Stack", keep_going: bool) -> tuple["Survey", set[int]]:
    """Return the survey of the planes to restore, and the numbers of those that are copied."""
    from denoise.stacks.survey import Survey, survey

    total, copied = Survey(), set(range(len(stack)))
    with progress(f"look at {stack.path.name}", len(stack), "planes") as advance:
        for number, plane in stack.planes():
            found = survey(plane)
            if found.no_number and not keep_going:
                raise UserError(
                    f"{stack.path} holds values that are no number in {stack.name(number)}; --keep-going copies such "
                    "planes as they are and restores the others."
                )
            if not (found.constant or found.no_number):
                copied.remove(number)
            total += found
            advance()
    return total, copied


def _choose_range(stack: "Stack", denoiser: "Denoiser", wanted: str, total: "Survey") -> "ValueRange":
    """Return the range that is asked for, else the model's, else that of 8 bits, else the one that values fill."""
    from denoise.stacks.options import AUTO, choose_range
    from denoise.stacks.survey import is_far

    if wanted != AUTO or denoiser.value_range is None:
        value_range = choose_range(wanted, stack.dtype.name, total, str(stack.path))
        say(f"the values of {stack.path} are restored in the range {value_range}; --range sets another.")
        return value_range
    measured = total.measured_range(str(stack.path))
    if is_far(measured, denoiser.value_range):
        say(
            f"warning: the values of {stack.path} fill {measured}, the model was trained on {denoiser.value_range} and "
            "does not know such values; --range LOW,HIGH sets another range."
        )
    return denoiser.value_range


def _remarks(source: Path, total: "Survey") -> list[str]:
    copied = " (copied as they are)" if total.constant or total.no_number else ""
    found = ", ".join(total.remarks())
    return [f"{source} has {found}{copied}"] if found else []
