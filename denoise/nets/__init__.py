"""The networks: the registry by command-line name, and how a network is built. A net never knows its method."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import nn

from denoise.errors import UserError, nearest
from denoise.nets.cnn5 import CNN5
from denoise.nets.dbsn import DBSN
from denoise.nets.dncnn import DnCNN
from denoise.nets.drunet import DRUNet
from denoise.nets.rednet import REDNet30
from denoise.nets.tmbsn import TMBSN
from denoise.nets.unet import UNetN2N
from denoise.nets.unet_n2v import UNetN2V, UNetN2V2
from denoise.nets.unet_ssdn import UNetSSDN
from denoise.nets.zsn2n import ZSN2N

NETS: dict[str, type[nn.Module]] = {
    "unet_n2n": UNetN2N,
    "unet_ssdn": UNetSSDN,
    "tmbsn": TMBSN,
    "dbsn": DBSN,
    "unet_n2v": UNetN2V,
    "unet_n2v2": UNetN2V2,
    "dncnn": DnCNN,
    "rednet30": REDNet30,
    "cnn5": CNN5,
    "drunet": DRUNet,
    "zs_n2n": ZSN2N,
}

METHOD_ARGUMENTS = ("channels", "outputs", "blind_spot")  # set by the method, not by the user


@dataclass(frozen=True)
class NetMaker:
    """Builds the configured network for images of that many channels; methods call it (``MakeNet``)."""

    name: str
    channels: int
    fields: Mapping[str, Any]

    def __call__(self, *, outputs: int | None = None, blind_spot: bool = False, zero_last: bool = False) -> nn.Module:
        """Return a network with weights drawn from torch's global generator.

        Every network has an attribute ``last``, its last layer, and may have ``multiple``: both sides of its input must
        be multiples of it.
        """
        cls = net_class(self.name)
        parameters = inspect.signature(cls).parameters
        fields = [key for key in parameters if key not in METHOD_ARGUMENTS]
        values = {}
        for field, value in self.fields.items():
            if field not in fields:
                hint = f"its fields are {', '.join(fields)}" if fields else "it has no fields"
                raise UserError(f"net.{field} is not a field of {self.name}{nearest(field, fields)}; {hint}.")
            try:
                values[field] = TypeAdapter(parameters[field].annotation).validate_python(value)
            except ValidationError as error:
                reason = error.errors()[0]["msg"]
                message = f"invalid value {value!r} for net.{field}: {reason[:1].lower()}{reason[1:]}."
                raise UserError(message) from None
        if blind_spot and "blind_spot" not in parameters:
            suitable = [name for name, cls in NETS.items() if "blind_spot" in inspect.signature(cls).parameters]
            raise UserError(
                f"net={self.name} has no form with a blind spot, which this method needs; use {suitable[0]}."
            )
        form = {"blind_spot": True} if blind_spot else {}
        net = cls(channels=self.channels, outputs=outputs or self.channels, **form, **values)
        if zero_last:
            nn.init.zeros_(net.get_parameter("last.weight"))
        return net


def net_class(name: str) -> type[nn.Module]:
    """Return the network of a name."""
    if name not in NETS:
        raise UserError(f"net={name} is not known{nearest(name, NETS)}; use auto or one of {', '.join(NETS)}.")
    return NETS[name]


def multiple_of(net: nn.Module) -> int:
    """Return the number that both sides of this net's input must be multiples of."""
    return int(getattr(net, "multiple", 1))
