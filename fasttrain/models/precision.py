"""What `precision: auto` means on this machine: bfloat16 on a GPU; what is faster on a CPU.

settings, gain = decided(settings, device)
settings = with_precision(settings, "bfloat16")     # as it was decided before
compute_in(network, faster("auto", device))         # of a network that makes images
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import torch

from fasttrain.settings import FinetuneSettings, RunSettings
from fasttrain.system.cpu_rate import Gain, bfloat16_gain

__all__ = ["Precision", "compute_in", "decided", "faster", "is_open", "with_precision"]

Precision = Literal["float32", "bfloat16", "auto"]
S = TypeVar("S", bound=RunSettings)


def is_open(settings: RunSettings, device: torch.device) -> bool:
    """Whether a measurement decides any precision of these settings."""
    precisions = [settings.precision]
    if isinstance(settings, FinetuneSettings):
        precisions.append(settings.discriminator.precision)
    return device.type == "cpu" and "auto" in precisions


def decided(settings: S, device: torch.device) -> tuple[S, Gain | None]:
    """The settings with the faster dtype for each `auto`, and what was measured for it; on a GPU,
    and where nothing is `auto`, as they are, and None."""
    if not is_open(settings, device):
        return settings, None
    gain = bfloat16_gain()
    return with_precision(settings, gain.dtype), gain


def with_precision(settings: S, dtype: str) -> S:
    """The settings with a dtype for each `auto`."""
    changes: dict[str, object] = {}
    if settings.precision == "auto":
        changes["precision"] = dtype
    if isinstance(settings, FinetuneSettings) and settings.discriminator.precision == "auto":
        changes["discriminator"] = settings.discriminator.model_copy(update={"precision": dtype})
    return settings.model_copy(update=changes)


def faster(precision: Precision, device: torch.device) -> str:
    """The dtype's name; `auto`: bfloat16 on a GPU, what is faster on a CPU."""
    if precision != "auto":
        return precision
    return "bfloat16" if device.type == "cuda" else bfloat16_gain().dtype


def compute_in(network: Any, dtype: str) -> None:
    """Have a network that makes images compute in a dtype. Weights stay as they are and are cast at
    use; preconditioning and the steps between evaluations are float32 in any case."""
    low = dtype == "bfloat16"
    network.activation_dtype = torch.bfloat16 if low else torch.float32
    network.memory_format = torch.channels_last if low else torch.contiguous_format
