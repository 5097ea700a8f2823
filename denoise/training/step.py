"""One optimizer step on this rank's share of a global batch, in as many parts as its memory asks for."""

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
from denoise.rng import batch_rng
from denoise.training.checkpoint import TrainState
from denoise.training.fault_injection import FaultInjector

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
    """Takes optimizer steps; the global batch is the same however many ranks and parts share it."""

    def __init__(
        self, config: Config, training: TrainState, method: Method, noise: Noise, half: bool, faults: FaultInjector
    ) -> None:
        self.config, self.spec, self.training = config, config.train, training
        self.method, self.noise, self.use_bf16, self.faults = method, noise, half, faults
        self.device = distributed.device()
        self.layout = torch.channels_last if self.spec.channels_last else torch.contiguous_format
        self.micro_batch = self.spec.micro_batch or self.spec.batch_size  # crops that are computed at once
        # A rank whose memory is full repeats its step by itself, which DDP, in the middle of averaging, would not bear.
        self.manual_allreduce = self.spec.oom == "halve" or distributed.world_size() == 1
        objective = Objective(training.net, method)
        if self.spec.compile or self.spec.cuda_graphs:
            objective.compile(mode="reduce-overhead" if self.spec.cuda_graphs else None)
        static = self.spec.static_graph and self.spec.micro_batch is None
        self.objective = objective if self.manual_allreduce else distributed.wrap(objective, static)
        if self.spec.cuda_graphs:  # see _forget_gradients
            for parameter in training.net.parameters():
                parameter.grad = torch.zeros_like(parameter)

    def __call__(self, step: int, ours: CropBatch, lr: float) -> Terms | None:
        """Learn from a batch and return this rank's part of the mean terms of the loss, None if the step was skipped.

        Raises:
            UserError: the memory of the GPU is full.
        """
        optimizer = self.training.optimizer
        for group in optimizer.param_groups:
            group["lr"] = lr
        terms = self._with_gradients(step, ours)
        if self.manual_allreduce:
            distributed.average_gradients(self.training.net.parameters())
        finite = not self.spec.skip_nonfinite or self._finite(terms)
        if finite:
            optimizer.step()
        self._forget_gradients()
        if finite and self.training.average is not None:
            self.training.average.update_parameters(self.training.net)
        return terms if finite else None

    def _with_gradients(self, step: int, ours: CropBatch) -> Terms:
        """Compute the gradients of a batch, in smaller parts where the memory is full and that is asked for."""
        while True:
            try:
                return self._parts(step, ours)
            except torch.OutOfMemoryError:
                size = min(self.micro_batch, len(ours.positions))
                if self.spec.oom != "halve" or size == 1:
                    raise self._advice(size) from None
            self.micro_batch = -(-size // 2)
            self._forget_gradients()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def _parts(self, step: int, ours: CropBatch) -> Terms:
        parts = list(ours.parts(self.micro_batch))
        total: Terms = {}
        for number, part in enumerate(parts):
            batch = self._make_batch(step, part)
            share = len(part.positions) / self.spec.batch_size
            if self.spec.cuda_graphs:
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            with self._averaging(number == len(parts) - 1):
                with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.use_bf16):
                    terms = self.objective(batch, step / self.spec.steps)
                # DDP averages over ranks, the loss over the batch.
                (terms["loss"] * (share * distributed.world_size())).backward()
            for name, value in terms.items():
                weighted = value.detach().float() * share
                total[name] = total[name] + weighted if name in total else weighted
        return total

    def _forget_gradients(self) -> None:
        """Drop the gradients; CUDA graphs write theirs to memory of their own, which must be added up elsewhere."""
        self.training.optimizer.zero_grad(set_to_none=not self.spec.cuda_graphs)

    def _make_batch(self, step: int, part: CropBatch) -> Batch:
        """Return what the method sees of some crops: the views it needs and no other."""
        crops = {
            name: as_floats(view.to(self.device, non_blocking=True)).contiguous(memory_format=self.layout)
            for name, view in part.views.items()
        }
        self.faults.corrupt_batch(step, crops)
        rng = batch_rng(self.config.seed, step, part.positions.to(self.device))
        return self.method.make_batch(make_views(crops, self.method, self.noise, rng), rng.stream("method"))

    def _averaging(self, last: bool) -> AbstractContextManager[None]:
        """Let DDP average the gradients in the last part only."""
        if last or not isinstance(self.objective, DistributedDataParallel):
            return nullcontext()
        return self.objective.no_sync()

    def _finite(self, terms: Terms) -> bool:
        """Say whether the loss is finite on every rank; this waits for the device."""
        bad = (~torch.isfinite(terms["loss"])).float().reshape(1)
        return distributed.total(bad).item() == 0

    def _advice(self, size: int) -> UserError:
        lower = f"train.micro_batch={-(-size // 2)}, which leaves the batch what it is" if size > 1 else "train.crop"
        return UserError(
            f"the GPU's memory is too small for {size} crops of {self.spec.crop} pixels at once; lower {lower}, or let "
            "train.oom=halve find what fits."
        )
