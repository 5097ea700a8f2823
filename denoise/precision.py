"""Precision: whether nets compute in fp32, or in bf16 under autocast."""

from contextlib import AbstractContextManager

import torch


def resolve_precision(precision: str, device: torch.device) -> str:
    """Return "bf16" or "fp32"; "auto" is bf16 where the hardware computes in it."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Let nets compute in a precision ("auto" is resolved) while the block runs; weights and results stay fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=resolve_precision(precision, device) == "bf16")
