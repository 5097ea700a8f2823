"""The networks by their command-line name. A net never knows the method that trains it."""

import inspect
from collections.abc import Mapping

from torch import nn

from denoise.errors import UserError, nearest
from denoise.nets.unet import UNetN2N

NETS: dict[str, type[nn.Module]] = {"unet_n2n": UNetN2N}


def build_net(name: str, channels: int, fields: Mapping[str, object]) -> nn.Module:
    """Return the net of a name for pictures of that many channels, with weights drawn from torch's global generator."""
    if name not in NETS:
        raise UserError(f"net={name} is not known{nearest(name, NETS)}; use one of {', '.join(NETS)}.")
    known = [key for key in inspect.signature(NETS[name]).parameters if key != "channels"]
    for field in fields:
        if field not in known:
            has = f"its fields are {', '.join(known)}" if known else "it has no fields"
            raise UserError(f"net.{field} is not a field of {name}{nearest(field, known)}; {has}.")
    return NETS[name](channels, **fields)


def multiple_of(net: nn.Module) -> int:
    """Return the number that both sides of this net's input must be multiples of."""
    return int(getattr(net, "multiple", 1))
