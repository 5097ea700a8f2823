"""TrainStep: one optimizer step on this rank's part of a global batch, in micro-batches where memory is short."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from denoise import distributed
from denoise.config import Config
from denoise.data.crops import as_floats
from denoise.data.loader import CropBatch
from denoise.data.samples import make_views
from denoise.errors import UserError
from denoise.methods import Batch, Method
from denoise.noise import Noise
from denoise.precision import autocast, resolve_precision
from denoise.rng import batch_rng
from denoise.training.checkpoint import TrainState
from denoise.training.fault_injection import NO_FAULTS, FaultInjector

Terms = dict[str, Tensor]


class Objective(nn.Module):
    """The method's loss as one module, so that a rank makes one forward pass through DDP however often the net runs."""

    def __init__(self, net: nn.Module, method: Method) -> None:
        super().__init__()
        self.net, self.method = net, method

    def forward(self, batch: Batch, progress: float) -> Batch:
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
        faults: FaultInjector = NO_FAULTS,
    ) -> None:
        self.config, self.spec, self.train_state = config, config.train, train_state
        self.method, self.noise, self.faults = method, noise, faults
        self.device = distributed.device()
        self.precision = resolve_precision(self.spec.precision, self.device)
        self.layout = torch.channels_last if self.spec.channels_last else torch.contiguous_format
        self.micro_batch = self.spec.micro_batch or self.spec.batch_size  # crops that are computed at once
        # A rank that runs out of memory repeats its step alone, which DDP cannot do in the middle of averaging.
        self.manual_allreduce = self.spec.oom == "halve" or distributed.world_size() == 1
        objective = Objective(train_state.net, method)
        if self.spec.compile or self.spec.cuda_graphs:
            objective.compile(mode="reduce-overhead" if self.spec.cuda_graphs else None)
        static = self.spec.static_graph and self.spec.micro_batch is None
        self.objective = objective if self.manual_allreduce else distributed.wrap(objective, static)
        if self.spec.cuda_graphs:  # see _zero_gradients
            for parameter in train_state.net.parameters():
                parameter.grad = torch.zeros_like(parameter)

    def __call__(self, step: int, batch: CropBatch, lr: float) -> Terms | None:
        """Train on this rank's crops and return its part of the mean loss terms, None if the step was skipped.

        Args:
            step: keys the randomness of the step, from 0.
            batch: the crops of this rank.
            lr: the learning rate.

        Raises:
            UserError: the GPU ran out of memory.
        """
        optimizer = self.train_state.optimizer
        for group in optimizer.param_groups:
            group["lr"] = lr
        terms = self._forward_backward(step, batch)
        if self.manual_allreduce:
            distributed.average_gradients(self.train_state.net.parameters())
        finite = not self.spec.skip_nonfinite or self._is_finite(terms)
        if finite:
            optimizer.step()
        self._zero_gradients()
        if finite and self.train_state.average is not None:
            self.train_state.average.update_parameters(self.train_state.net)
        return terms if finite else None

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
            self._zero_gradients()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _accumulate(self, step: int, batch: CropBatch) -> Terms:
        """Add up the gradients of the micro-batches and return the weighted terms of their losses."""
        parts = list(batch.parts(self.micro_batch))
        total: Terms = {}
        for number, part in enumerate(parts):
            inputs = self._make_batch(step, part)
            weight = len(part.positions) / self.spec.batch_size
            if self.spec.cuda_graphs:
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            with self._ddp_averaging(number == len(parts) - 1):
                with autocast(self.precision, self.device):
                    terms = self.objective(inputs, step / self.spec.steps)
                # DDP averages over ranks, the loss over the batch.
                (terms["loss"] * (weight * distributed.world_size())).backward()
            for name, value in terms.items():
                weighted = value.detach().float() * weight
                total[name] = total[name] + weighted if name in total else weighted
        return total

    def _zero_gradients(self) -> None:
        """Clear the gradients.

        With CUDA graphs they are zeroed in place: a replayed graph overwrites its own memory, so gradients are added up
        in tensors outside it.
        """
        self.train_state.optimizer.zero_grad(set_to_none=not self.spec.cuda_graphs)

    def _make_batch(self, step: int, part: CropBatch) -> Batch:
        """Return what the method makes of some crops: it is handed the views it needs and no other."""
        crops = {
            name: as_floats(view.to(self.device, non_blocking=True)).contiguous(memory_format=self.layout)
            for name, view in part.views.items()
        }
        self.faults.corrupt_batch(step, crops)
        rng = batch_rng(self.config.seed, step, part.positions.to(self.device))
        return self.method.make_batch(make_views(crops, self.method, self.noise, rng), rng.stream("method"))

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
            f"the GPU's memory is too small for {size} crops of {self.spec.crop} pixels at once; lower {lower}, or let "
            "train.oom=halve find what fits."
        )
