"""The noise2X methods: the registry by command-line name, and how a method is built from a configuration."""

import dataclasses
from collections.abc import Mapping

import torch
from torch import nn

from denoise.config import Choice, Config
from denoise.documents import build
from denoise.errors import UserError, nearest
from denoise.methods.apbsn import APBSN
from denoise.methods.atbsn import ATBSN
from denoise.methods.base import Batch, MakeNet, Method, View, Views, observe
from denoise.methods.blind2unblind import Blind2Unblind
from denoise.methods.bm3d import BM3D
from denoise.methods.distil import Distil
from denoise.methods.generalized_r2r import GeneralizedR2R
from denoise.methods.mash import MASH
from denoise.methods.neighbor2neighbor import Neighbor2Neighbor
from denoise.methods.noise2clean import Noise2Clean
from denoise.methods.noise2noise import Noise2Noise
from denoise.methods.noise2same import Noise2Same
from denoise.methods.noise2self import Noise2Self
from denoise.methods.noise2void import Noise2Void
from denoise.methods.noisier2noise import Noisier2Noise
from denoise.methods.recorrupted2recorrupted import Recorrupted2Recorrupted
from denoise.methods.ssdn import SSDN
from denoise.methods.sure import SURE
from denoise.methods.zero_shot_noise2noise import ZeroShotNoise2Noise
from denoise.nets import NetMaker
from denoise.noise import Noise, parse_noise

__all__ = [
    "METHODS",
    "Batch",
    "MakeNet",
    "Method",
    "View",
    "Views",
    "build_method",
    "meta_net",
    "observe",
    "smallest_crop",
    "with_net",
]

CROP, LARGE_CROP = 64, 128  # what ``train.crop=auto`` takes, the second for nets that need more than the first

METHODS: dict[str, type[Method]] = {
    "n2c": Noise2Clean,
    "n2n": Noise2Noise,
    "ssdn": SSDN,
    "r2r": Recorrupted2Recorrupted,
    "gr2r": GeneralizedR2R,
    "noisier2noise": Noisier2Noise,
    "sure": SURE,
    "n2v": Noise2Void,
    "n2s": Noise2Self,
    "n2same": Noise2Same,
    "nb2nb": Neighbor2Neighbor,
    "b2u": Blind2Unblind,
    "atbsn": ATBSN,
    "apbsn": APBSN,
    "distil": Distil,
    "zs_n2n": ZeroShotNoise2Noise,
    "mash": MASH,
    "bm3d": BM3D,
}


def build_method(name: str, fields: Mapping[str, object], noise: Noise) -> Method:
    """Return the method of a name with its hyperparameters, for images with that noise.

    A method whose field ``family`` is "auto" gets the family that the noise is treated as in its place; with another
    value it is built for any noise, as noise of that family.

    Raises:
        UserError: an unknown name or field (the nearest is suggested), or noise that the method is not defined for.
    """
    method = build(_method_class(name), fields, where="method")
    family = getattr(method, "family", None)
    told = family not in (None, "auto")
    if method.families is not None and noise.assumed_family not in method.families and not told:
        known = ", ".join(method.families)
        anyway = "; method.family=gauss takes it for that anyway" if family and "gauss" in method.families else ""
        raise UserError(
            f"method={name} is not defined for noise={noise.name}; it knows noise of family {known}{anyway}."
        )
    if family == "auto":
        return dataclasses.replace(method, family=noise.assumed_family)  # type: ignore[call-arg]
    return method


def with_net(config: Config) -> Config:
    """Return the configuration with what is left to method, net and optimizer settled; settled ones stay as they are.

    ``net=auto`` becomes the network of the method's paper, ``train.crop=auto`` a number that lets every weight of the
    net learn, and ``train.weight_decay=null`` the optimizer's own.

    Raises:
        UserError: an unknown name or field, or a net that the method cannot use.
    """
    if config.net.name == "auto":
        net = Choice(_method_class(config.method.name).net, config.net.fields)
        config = dataclasses.replace(config, net=net)
    train = dataclasses.replace(config.train, weight_decay=config.train.decay)
    if train.crop == "auto":
        method = build_method(config.method.name, config.method.fields, parse_noise(config.noise))
        least = smallest_crop(meta_net(config, method))
        train = dataclasses.replace(train, crop=CROP if least <= CROP else LARGE_CROP)
    return dataclasses.replace(config, train=train)


def meta_net(config: Config, method: Method) -> nn.Module:
    """Return the module that a method trains with the configured net, without weights: it takes no memory."""
    with torch.device("meta"):
        return method.make_net(NetMaker(config.net.name, config.data.channels, config.net.fields))


def smallest_crop(net: nn.Module) -> int:
    """Return the least side of training crops, in pixels, from which every weight of a net learns."""
    return max(int(getattr(part, "smallest_crop", 1)) for part in net.modules())


def _method_class(name: str) -> type[Method]:
    if name not in METHODS:
        raise UserError(f"method={name} is not known{nearest(name, METHODS)}; use one of {', '.join(METHODS)}.")
    return METHODS[name]
