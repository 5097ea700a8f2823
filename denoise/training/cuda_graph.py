"""A whole training step as one CUDA graph: batch, passes, optimizer and average in one launch.

Keyed randomness makes it simple: a step has no generator to advance. What differs from step to step (crops, keys,
learning rate, progress) is copied into tensors that stay where they are, and the rest is replayed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from denoise import distributed
from denoise.config import Config
from denoise.data.loader import CropBatch
from denoise.methods import Views
from denoise.noise import Noise
from denoise.rng import Rng, batch_rng, hashed_counters, to_device

Terms = dict[str, Tensor]
Take = Callable[[Views, Rng, Tensor, int], Terms]  # takes a step on a number of crops with the progress of training

WARM_UP = 3  # steps before the capture, which make the optimizer's state and choose kernels
MAX_DRAWS = 64  # different streams that a step draws from


def obstacle(config: Config, noise: Noise, device: torch.device) -> str | None:
    """Return what keeps the steps of a run from becoming one CUDA graph, in words, None if nothing does."""
    spec = config.train
    obstacles = {
        "there is no GPU": device.type != "cuda",
        "there are several workers": distributed.world_size() > 1,
        f"noise={noise.name} is drawn on the host": noise.on_host and not config.data.fixed_noise,
        "train.fused=false": not spec.fused,
        "train.micro_batch is set": spec.micro_batch is not None and spec.micro_batch < spec.batch_size,
        "train.oom=halve": spec.oom == "halve",
        "train.skip_nonfinite is set": spec.skip_nonfinite > 0,
        "train.teacher is set": spec.teacher is not None,
    }
    return next((reason for reason, applies in obstacles.items() if applies), None)


class KeyTable:
    """The keys of all draws of a step, in one tensor on the device that the host fills before each step."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.device, self.paths = device, list[tuple[str, ...]]()
        self.keys = torch.zeros(MAX_DRAWS, size, dtype=torch.int64, device=device)
        self._counters: dict[int, Tensor] = {}  # kept: a graph reads them wherever they were when it was captured

    def fill(self, rng: Rng) -> None:
        """Take the keys of a step for the draws that are known from the steps before."""
        if self.paths:
            keys = np.stack([reduce(Rng.stream, path, rng).keys for path in self.paths])
            self.keys[: len(keys)].copy_(to_device(torch.from_numpy(keys), self.device))

    def row(self, rng: "StaticRng") -> Tensor:
        """Return where the keys of a draw are; a draw that is not known yet brings its own."""
        if rng.path not in self.paths:
            self.paths.append(rng.path)
            self.keys[len(self.paths) - 1].copy_(to_device(torch.from_numpy(rng.keys), self.device))
        return self.keys[self.paths.index(rng.path)]

    def counters(self, count: int) -> Tensor:
        """Return the hashed counters of a draw."""
        if count not in self._counters:
            self._counters[count] = hashed_counters(count, self.device)
        return self._counters[count]


@dataclass(frozen=True, eq=False)
class StaticRng(Rng):
    """The randomness of a batch, with keys on the device that change from step to step."""

    table: KeyTable
    path: tuple[str, ...] = field(default=())  # names of the streams from the batch's own randomness to this one

    def stream(self, name: str) -> Rng:
        """Return independent randomness for one purpose."""
        return replace(super().stream(name), path=(*self.path, name))  # type: ignore[call-arg]

    def _keys_on_device(self) -> Tensor:
        return self.table.row(self)

    def _counters(self, count: int) -> Tensor:
        return self.table.counters(count)


class StaticStep:
    """A training step that reads nothing but tensors, which stay where they are from step to step."""

    def __init__(
        self, take: Take, config: Config, optimizer: torch.optim.Optimizer, like: CropBatch, device: torch.device
    ) -> None:
        """Make the tensors for batches of the form of ``like``, and give the optimizer a learning rate to read."""
        self.take, self.seed, self.steps, self.device = take, config.seed, config.train.steps, device
        self.views = {name: torch.empty_like(view, device=self.device) for name, view in like.views.items()}
        self.progress = torch.zeros((), device=self.device)
        self.keys = KeyTable(len(like.positions), self.device)
        self.rng: Rng = StaticRng(np.zeros(len(like.positions), np.int64), self.device, self.keys)
        lr = torch.zeros((), device=self.device)
        for group in optimizer.param_groups:
            group["lr"] = lr
            if "capturable" in group:
                group["capturable"] = True

    def fits(self, batch: CropBatch) -> bool:
        """Say whether a batch has the form of the tensors: crops of 8 and of 16 bits are stored differently."""
        return batch.views.keys() == self.views.keys() and all(
            (view.shape, view.dtype) == (self.views[name].shape, self.views[name].dtype)
            for name, view in batch.views.items()
        )

    def fill(self, step: int, batch: CropBatch) -> None:
        """Copy in what is particular to a step; the host does not wait for it."""
        for name, view in batch.views.items():
            self.views[name].copy_(view, non_blocking=True)
        rng = batch_rng(self.seed, step, batch.positions, self.device)
        self.keys.fill(rng)
        self.rng = replace(self.rng, keys=rng.keys)
        self.progress.fill_(step / self.steps)

    def run(self) -> Terms:
        """Take the step that was filled in, and return the terms of its loss."""
        return self.take(self.views, self.rng, self.progress, len(self.rng.keys))

    def __call__(self, step: int, batch: CropBatch) -> Terms:
        """Take a step and return the terms of its loss."""
        self.fill(step, batch)
        return self.run()


class CudaGraphStep(StaticStep):
    """A static step that is captured as a CUDA graph after the first steps, and replayed from then on.

    It follows PyTorch's notes on CUDA semantics ("Whole-network capture"). The terms it returns are
    overwritten by the next step.
    """

    def __init__(
        self, take: Take, config: Config, optimizer: torch.optim.Optimizer, like: CropBatch, device: torch.device
    ) -> None:
        super().__init__(take, config, optimizer, like, device)
        self.side_stream, self.steps_done = torch.cuda.Stream(self.device), 0  # type: ignore[no-untyped-call]
        self.graph: torch.cuda.CUDAGraph | None = None
        self.terms: Terms = {}

    def __call__(self, step: int, batch: CropBatch) -> Terms:
        """Take a step and return the terms of its loss."""
        self.fill(step, batch)
        if self.steps_done < WARM_UP:
            self.steps_done += 1
            return self._warm_up()
        if self.graph is None:
            graph = torch.cuda.CUDAGraph()
            # Other threads go on pinning crops meanwhile, which a capture in the mode "global" would forbid.
            with torch.cuda.graph(graph, stream=self.side_stream, capture_error_mode="thread_local"):
                self.terms = self.run()
            self.graph = graph
        self.graph.replay()
        return self.terms

    def _warm_up(self) -> Terms:
        """Take a step as it is, on a stream of its own, as captures ask for."""
        self.side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.side_stream):
            terms = self.run()
        torch.cuda.current_stream().wait_stream(self.side_stream)
        return terms
