"""What every launch of a Triton kernel needs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def on_device(tensor: torch.Tensor) -> AbstractContextManager:
    """Makes the tensor's GPU the current one, which is where Triton launches; nothing for what is interpreted."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
