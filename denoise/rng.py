"""Random numbers keyed by (seed, step, position): the same on every rank, world size, device and restart.

A counter-based generator: the n-th number of a sample is a hash of (key of the sample, n), so there is no state to
save, nothing to synchronise between ranks, and a whole batch is drawn by a handful of vectorised integer operations.
The hash is the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014) on 64-bit integers, which torch multiplies modulo 2^64 alike on the CPU and on a GPU.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """Return the signed integer with the bits of an unsigned 64-bit one: torch multiplies signed ones only."""
    return value - (1 << 64) if value >= 1 << 63 else value


GOLDEN = _signed(0x9E3779B97F4A7C15)
MIX_1 = _signed(0xBF58476D1CE4E5B9)
MIX_2 = _signed(0x94D049BB133111EB)


def _mix(z: Tensor) -> Tensor:
    """Return the finaliser of SplitMix64; the masks turn torch's arithmetic shift into a logical one."""
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * MIX_1
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * MIX_2
    return z ^ ((z >> 31) & 0x1FFFFFFFF)


@dataclass(frozen=True)
class Rng:
    """The randomness of a batch: one 64-bit key for each sample, shape (B,).

    Every draw is a pure function of the keys: drawing twice gives the same numbers. Independent numbers come from
    streams of different names: ``rng.stream("noise").normal(3, 64, 64)``.
    """

    keys: Tensor

    def stream(self, name: str) -> "Rng":
        """Return independent randomness for one purpose, e.g. "noise" or "crop"."""
        salt = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little", signed=True)
        return Rng(_mix(_mix(self.keys ^ salt) + GOLDEN))

    def bits(self, count: int) -> Tensor:
        """Return (B, count) integers, each with 64 random bits."""
        # Counters are hashed before they are combined with the key: no two keys yield shifted copies of one sequence.
        counters = _mix(torch.arange(1, count + 1, device=self.keys.device) * GOLDEN)
        return _mix(self.keys[:, None] ^ counters)

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


def batch_rng(seed: int, step: int | Tensor, positions: Tensor) -> Rng:
    """Return the randomness of the samples at ``positions`` (B,) of the global batch of ``step``, one or (B,)."""
    key = positions.to(torch.int64)
    for part in (step, seed):
        key = _mix((key + 1) * GOLDEN + part)
    return Rng(_mix(key))
