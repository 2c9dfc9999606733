"""Sizes of networks, counted on their parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

__all__ = ["Sizes", "bytes_of", "sizes_of"]


@dataclass(frozen=True)
class Sizes:
    """Elements of each trained and each frozen parameter, in the optimizer's order, and the bytes
    of the saved buffers."""

    trained: tuple[int, ...]
    frozen: tuple[int, ...] = ()
    buffers: int = 0

    @property
    def trainable(self) -> int:
        return sum(self.trained)

    @property
    def total(self) -> int:
        return sum(self.trained) + sum(self.frozen)


def sizes_of(module: nn.Module) -> Sizes:
    """Count a module's parameters by their present `requires_grad`."""
    parameters = list(module.parameters())
    saved = module.state_dict()
    return Sizes(
        trained=tuple(p.numel() for p in parameters if p.requires_grad),
        frozen=tuple(p.numel() for p in parameters if not p.requires_grad),
        buffers=sum(bytes_of(b) for name, b in module.named_buffers() if name in saved),
    )


def bytes_of(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
