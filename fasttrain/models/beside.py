"""Named tensors that stand beside a layer's own: an adapter's, a second time's."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

__all__ = ["split"]


def split(
    weights: Mapping[str, Tensor], mark: str
) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """The tensors whose names do not have `mark` in them, and of each layer the others, by what
    follows it."""
    rest: dict[str, Tensor] = {}
    beside: dict[str, dict[str, Tensor]] = {}
    for name, value in weights.items():
        layer, found, part = name.partition(mark)
        if found:
            beside.setdefault(layer, {})[part] = value
        else:
            rest[name] = value
    return rest, beside
