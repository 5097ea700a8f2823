"""Random numbers keyed by (seed, step, position): the same on every rank, world size, device and restart.

A counter-based generator: the n-th number of a sample is a hash of (key of the sample, n), so there is no state to
save, nothing to synchronise between ranks, and a whole batch is drawn by a handful of vectorised integer operations.
The hash is the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014) on 64-bit integers, which numpy and torch multiply modulo 2^64 alike, on the CPU and on a GPU.

The few keys of a batch are hashed on the host, where an operation costs a microsecond; only the numbers are computed on
the device, which gets the keys by a copy that nobody waits for.
"""

import hashlib
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Words = TypeVar("Words", Tensor, NDArray[np.int64])


def _signed(value: int) -> int:
    """Return the signed integer with the bits of an unsigned 64-bit one: torch multiplies signed ones only."""
    return value - (1 << 64) if value >= 1 << 63 else value


GOLDEN = _signed(0x9E3779B97F4A7C15)
MIX_1 = _signed(0xBF58476D1CE4E5B9)
MIX_2 = _signed(0x94D049BB133111EB)
CACHED_COUNT = 1 << 18  # numbers of a draw whose counters are cached: 2 MB, times the 16 of the cache


def _mix(z: Words) -> Words:
    """Return the finaliser of SplitMix64; the masks turn an arithmetic shift into a logical one."""
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * MIX_1
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * MIX_2
    return z ^ ((z >> 31) & 0x1FFFFFFFF)


@lru_cache(maxsize=1024)
def _salt(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little", signed=True)


def hashed_counters(count: int, device: torch.device) -> Tensor:
    """Return the counters 1 .. count, hashed: before they are combined with a key, so that no two keys yield shifted
    copies of one sequence."""
    return _mix(torch.arange(1, count + 1, device=device) * GOLDEN)


@lru_cache(maxsize=16)
def _cached_counters(count: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return hashed_counters(count, device)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Return values of the host on a device, without waiting for what the device is computing."""
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)


@dataclass(frozen=True, eq=False)
class Rng:
    """The randomness of a batch: one 64-bit key for each sample.

    Every draw is a pure function of the keys: drawing twice gives the same numbers. Independent numbers come from
    streams of different names: ``rng.stream("noise").normal(3, 64, 64)``.
    """

    keys: NDArray[np.int64]  # (B,), on the host
    device: torch.device  # of the numbers

    def stream(self, name: str) -> "Rng":
        """Return independent randomness for one purpose, e.g. "noise" or "crop"."""
        return replace(self, keys=_mix(_mix(self.keys ^ _salt(name)) + GOLDEN))

    def on(self, device: torch.device | str) -> "Rng":
        """Return the same randomness, as numbers on another device."""
        return Rng(self.keys, torch.device(device))

    def bits(self, count: int) -> Tensor:
        """Return (B, count) integers, each with 64 random bits."""
        return _mix(self._keys_on_device()[:, None] ^ self._counters(count))

    def _keys_on_device(self) -> Tensor:
        return to_device(torch.from_numpy(self.keys), self.device)

    def _counters(self, count: int) -> Tensor:
        return (_cached_counters if count <= CACHED_COUNT else hashed_counters)(count, self.device)

    def uniform(self, *shape: int) -> Tensor:
        """Return (B, *shape) float32, uniform in [0, 1) with 24 bits."""
        bits = self.bits(math.prod(shape))
        return ((bits >> 40) & 0xFFFFFF).to(torch.float32).mul_(2**-24).view(-1, *shape)

    def normal(self, *shape: int) -> Tensor:
        """Return (B, *shape) float32, standard normal (Box-Muller on 24-bit uniforms, so at most 5.8 sigma)."""
        count = math.prod(shape)
        bits = self.bits((count + 1) // 2)
        radius = ((bits & 0xFFFFFF).to(torch.float32) + 1).mul_(2**-24).log_().mul_(-2).sqrt_()
        angle = ((bits >> 40) & 0xFFFFFF).to(torch.float32).mul_(2**-24 * 2 * math.pi)
        pairs = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
        return pairs[:, :count].view(-1, *shape)

    def integers(self, high: int, *shape: int) -> Tensor:
        """Return (B, *shape) int64, uniform in [0, high); the bias of the modulo is below high / 2^63."""
        bits = self.bits(math.prod(shape))
        return ((bits & 0x7FFFFFFFFFFFFFFF) % high).view(-1, *shape)


def batch_rng(seed: int, step: int | Tensor, positions: Tensor, device: torch.device | str | None = None) -> Rng:
    """Return the randomness of the samples at ``positions`` (B,) of the global batch of ``step``, one or (B,).

    Numbers are drawn on ``device``, by default that of the positions. Positions on a GPU have to be waited for.
    """
    key = positions.cpu().numpy().astype(np.int64)
    for part in (np.asarray(step, np.int64), seed):
        key = _mix((key + 1) * GOLDEN + part)
    return Rng(_mix(key), positions.device if device is None else torch.device(device))
