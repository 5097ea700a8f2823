"""Samples from the planes of a stack: FILE/PLANE, in the order of their numbers."""

from pathlib import Path
from typing import TYPE_CHECKING

from denoise.errors import UserError

if TYPE_CHECKING:
    from denoise.sharding.plan import Source
    from denoise.stacks.options import StackOptions


def find_planes(path: Path, stacks: "StackOptions") -> "list[Source]":
    """Return a sample for each plane of a stack: ``cells.tif/t003_c1``, or ``cells.tif`` of the only one.

    A file that cannot be opened is one sample, which is refused when it is read, or left out with other broken images.
    """
    from denoise.sharding.plan import Source
    from denoise.sharding.planes import Plane
    from denoise.stacks.opening import open_stack

    views, how = {"clean": path}, (stacks.axes, stacks.channels)
    try:
        with open_stack(path, *how) as stack:
            size = stack.dtype.itemsize * stack.layout.plane_values
            numbers = filter(stack.layout.chosen, range(len(stack)))
            return [Source(stack.name(number), views, Plane(number, size, *how)) for number in numbers]
    except UserError:
        return [Source(path.name, views, Plane(0, path.stat().st_size, *how))]
