"""Devices: where Triton's kernels run, PyTorch in their place where they cannot, and when they are done."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

import torch

GPUS = ("cuda",)
"""Types of devices that kernels are written for; PyTorch calls HIP's by the same name."""

OLDEST = (8, 0)
"""The lowest capability of an NVIDIA card that Triton compiles for; older ones have no bfloat16, either."""

_failed: list[str] = []
"""Why Triton does not run, once it has been tried."""


def triton_serves(tensor: torch.Tensor) -> bool:
    """Whether Triton does the work on this tensor; ``torch.compile`` sees the formula instead."""
    if torch.compiler.is_compiling() or _failed or tensor.device.type not in GPUS:
        return False
    return _new_enough(tensor.device)


@contextmanager
def or_pytorch() -> Iterator[None]:
    """Swallow what keeps Triton from running, warn of it once, and leave the work to PyTorch from then on.

    Use it around the import and the launch of a kernel, with PyTorch's way behind it.
    """
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise  # no fault of Triton's, and PyTorch would meet the same
    except Exception as fault:  # imports, compilers, assemblers and drivers fail with types of their own
        _fall_back(f"{type(fault).__name__}: {fault}")


def on_device(tensor: torch.Tensor) -> AbstractContextManager:
    """Makes the tensor's GPU the current one, which is where Triton launches; nothing for what is interpreted."""
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else nullcontext()


def wait_for(device: torch.device) -> None:
    """Return when all that was asked of a device is done; a processor does it while it is asked."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@cache
def _new_enough(device: torch.device) -> bool:
    if device.type != "cuda" or torch.version.hip is not None:
        return True
    capability = torch.cuda.get_device_capability(device)
    if capability < OLDEST:
        name = torch.cuda.get_device_name(device)
        _warn("{} has capability {}.{}, and Triton needs {}.{}".format(name, *capability, *OLDEST))
    return capability >= OLDEST


def _fall_back(reason: str) -> None:
    if not _failed:
        _failed.append(reason)
        _warn(reason.strip().splitlines()[0])


def _warn(reason: str) -> None:
    message = f"Triton cannot run here ({reason}). PyTorch does its work, with the same results, but slower."
    warnings.warn(message, RuntimeWarning, stacklevel=3)
