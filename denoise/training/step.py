"""TrainStep: one optimizer step on this rank's part of a global batch, in micro-batches where memory is short."""

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from denoise import distributed
from denoise.config import Config
from denoise.data.crops import as_floats
from denoise.data.loader import CropBatch
from denoise.data.samples import Teach, make_views
from denoise.errors import UserError
from denoise.methods import Batch, Method, Views
from denoise.noise import Noise
from denoise.precision import autocast, resolve_precision
from denoise.rng import Rng, batch_rng
from denoise.training.checkpoint import TrainState
from denoise.training.cuda_graph import CudaGraphStep, obstacle
from denoise.training.fault_injection import NO_FAULTS, FaultInjector
from denoise.training.gradient_averaging import plain_averaging, shared_averaging

Terms = dict[str, Tensor]


class Objective(nn.Module):
    """The method's loss as one module, so that a rank makes one forward pass through DDP however often the net runs."""

    def __init__(self, net: nn.Module, method: Method) -> None:
        super().__init__()
        self.net, self.method = net, method

    def forward(self, batch: Batch, progress: float | Tensor) -> Batch:
        """Return the terms of the loss."""
        return self.method.loss(self.net, batch, progress)


class TrainStep:
    """Takes optimizer steps; the global batch is the same however many ranks and micro-batches it is split into."""

    def __init__(
        self,
        config: Config,
        train_state: TrainState,
        method: Method,
        noise: Noise,
        *,
        teacher: Teach | None = None,  # of a method that learns from one
        faults: FaultInjector = NO_FAULTS,
        on_message: Callable[[str], None] = lambda message: None,  # told in one sentence why there is no CUDA graph
    ) -> None:
        self.config, self.spec, self.train_state = config, config.train, train_state
        self.method, self.noise, self.teacher, self.faults = method, noise, teacher, faults
        self.device = distributed.device()
        self.precision = resolve_precision(self.spec.precision, self.device)
        self.layout = torch.channels_last if self.spec.channels_last else torch.contiguous_format
        self.micro_batch = self.spec.micro_batch or self.spec.batch_size  # crops that are computed at once
        shared = shared_averaging(train_state.net, config.ray.timeout)
        self.average_gradients = shared or plain_averaging(train_state.net)
        # A rank that runs out of memory repeats its step alone, which DDP cannot do in the middle of averaging.
        self.manual_allreduce = bool(shared) or self.spec.oom == "halve" or distributed.world_size() == 1
        objective = Objective(train_state.net, method)
        if _compiles(self.spec.compile, method, self.device):
            objective.compile()
        static = self.spec.static_graph and self.spec.micro_batch is None
        self.objective = objective if self.manual_allreduce else distributed.wrap(objective, static)
        self.graph: CudaGraphStep | None = None  # made with the first batch
        self.use_graph = self.spec.cuda_graphs and not faults.pending
        reason = obstacle(config, noise, self.device) if self.use_graph else None
        if reason:
            self.use_graph = False
            on_message(f"warning: train.cuda_graphs is without effect here ({reason}); set it to false")

    def __call__(self, step: int, batch: CropBatch, lr: float) -> Terms | None:
        """Train on this rank's crops and return its part of the mean loss terms, None if the step was skipped.

        Args:
            step: keys the randomness of the step, from 0.
            batch: the crops of this rank.
            lr: the learning rate.

        Raises:
            UserError: the GPU ran out of memory.
        """
        if self.use_graph and self.graph is None:
            self.graph = CudaGraphStep(self.take, self.config, self.train_state.optimizer, batch, self.device)
        for group in self.train_state.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        if self.graph is not None and self.graph.fits(batch):
            return self._replay(self.graph, step, batch)
        terms = self._forward_backward(step, batch)
        if self.manual_allreduce:
            self.average_gradients()
        finite = not self.spec.skip_nonfinite or self._is_finite(terms)
        self._update(finite)
        return terms if finite else None

    def take(self, views: Views, rng: Rng, progress: float | Tensor, count: int) -> Terms:
        """Take a step on ``count`` crops that are on the device, as a CUDA graph does; return the terms of the loss."""
        terms = self._backward(self._make_inputs(views, rng), progress, count)
        self._update()
        return terms

    def _make_inputs(self, views: Views, rng: Rng) -> Batch:
        """Return what the method makes of crops on the device: it is handed the views it needs and no other."""
        crops = {name: as_floats(view).contiguous(memory_format=self.layout) for name, view in views.items()}
        return self.method.make_batch(
            make_views(crops, self.method, self.noise, rng, self.teacher), rng.stream("method")
        )

    def _backward(self, inputs: Batch, progress: float | Tensor, count: int) -> Terms:
        """Add the gradients of ``count`` crops of the batch, and return their part of the mean loss terms."""
        weight = count / self.spec.batch_size
        with autocast(self.precision, self.device):
            terms = self.objective(inputs, progress)
        # DDP averages over ranks, the loss over the batch.
        (terms["loss"] * (weight * distributed.world_size())).backward()
        return {name: value.detach().float() * weight for name, value in terms.items()}

    def _update(self, finite: bool = True) -> None:
        """Take the optimizer's step and move the average of the weights, if the gradients are finite; clear them."""
        if finite:
            self.train_state.optimizer.step()
        self.train_state.optimizer.zero_grad()
        if finite and self.train_state.average is not None:
            self.train_state.average.update(self.train_state.net)

    def _replay(self, graph: CudaGraphStep, step: int, batch: CropBatch) -> Terms:
        try:
            return graph(step, batch)
        except torch.OutOfMemoryError:
            raise self._out_of_memory(len(batch.positions)) from None

    def _forward_backward(self, step: int, batch: CropBatch) -> Terms:
        """Compute the gradients of a batch; halve the micro-batch when memory runs out, if the user allows that."""
        while True:
            try:
                return self._accumulate(step, batch)
            except torch.OutOfMemoryError:
                size = min(self.micro_batch, len(batch.positions))
                if self.spec.oom != "halve" or size == 1:
                    raise self._out_of_memory(size) from None
            self.micro_batch = -(-size // 2)
            self.train_state.optimizer.zero_grad()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _accumulate(self, step: int, batch: CropBatch) -> Terms:
        """Add up the gradients of the micro-batches and return the weighted terms of their losses."""
        parts = list(batch.parts(self.micro_batch))
        total: Terms = {}
        for number, part in enumerate(parts):
            crops = {name: as_floats(view.to(self.device, non_blocking=True)) for name, view in part.views.items()}
            self.faults.corrupt_batch(step, crops)
            rng = batch_rng(self.config.seed, step, part.positions, self.device)
            inputs = self._make_inputs(crops, rng)
            with self._ddp_averaging(number == len(parts) - 1):
                terms = self._backward(inputs, step / self.spec.steps, len(part.positions))
            for name, value in terms.items():
                total[name] = total[name] + value if name in total else value
        return total

    def _ddp_averaging(self, last: bool) -> AbstractContextManager[None]:
        """Let DDP average the gradients in the last micro-batch only."""
        if last or not isinstance(self.objective, DistributedDataParallel):
            return nullcontext()
        return self.objective.no_sync()

    def _is_finite(self, terms: Terms) -> bool:
        """Say whether the loss is finite on every rank; this waits for the device."""
        nonfinite = (~torch.isfinite(terms["loss"])).float().reshape(1)
        return distributed.total(nonfinite).item() == 0

    def _out_of_memory(self, size: int) -> UserError:
        lower = f"train.micro_batch={-(-size // 2)}, which leaves the batch what it is" if size > 1 else "train.crop"
        return UserError(
            f"the GPU's memory is too small for {size} crops of {self.spec.crop_pixels} pixels at once; lower {lower}, "
            "or let train.oom=halve find what fits."
        )


def _compiles(wanted: str, method: Method, device: torch.device) -> bool:
    """Say whether to compile: "auto" is where it pays off, and where the machine has a C compiler, as Triton needs."""
    if wanted != "auto":
        return wanted == "yes"
    compilers = (os.environ.get("CC", "gcc"), "clang")
    has_tools = find_spec("triton") is not None and any(shutil.which(name) for name in compilers)
    return method.compiled and device.type == "cuda" and has_tools
