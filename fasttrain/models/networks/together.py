"""What all residual blocks of a U-Net need besides activations, made before the first of them runs.

A block asks for few and small things: its affine layer's output, which depends on the embedding
alone; copies of its trained 1x1 weights in the dtype of the activations, those of queries, keys and
values with their rows in attention's order; the sum of two biases. A block at a time that is a
dozen launches each, and as many for their gradients, although the work is that of a few: one
product with all affine weights, one copy and one cast of all 1x1 weights, one sum. Copies and sums
are the same bits; a product over more rows may round its sums in another order.

Nothing outlives the pass, so a change of a weight between two passes needs no notice.

    ready = together(blocks, x, emb)            # {block: Ready}
    x, statistics = block(x, ready.get(block, emb), statistics)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Ready", "cast_together", "together"]

Copy = tuple[Tensor, Tensor | None]
"""Weight and bias of a convolution in the dtype of the activations."""


@dataclass(frozen=True)
class Ready:
    """Of one block.

    Attributes:
        affine: the affine layer's output, in its parts of [N, out_channels]: scale and shift, or
            the shift alone.
        late: the bias that the residual sum adds, or None.
        copies: of 1x1 convolutions by name; what is not there the convolution makes itself.
    """

    affine: Sequence[Tensor]
    late: Tensor | None
    copies: dict[str, Copy] = field(default_factory=dict)


def together(blocks: Iterable[Any], x: Tensor, emb: Tensor) -> dict[nn.Module, Ready]:
    """Of `UNetBlock`s whose activations have the dtype of x, with the embedding emb [N, E];
    differentiable in emb and in every weight that trains."""
    blocks = list(blocks)
    made = (_affine(blocks, emb), _late(blocks), _copies(blocks, x.dtype))
    rows = zip(blocks, *made, strict=True)
    return {block: Ready(affine, late, copies) for block, affine, late, copies in rows}


def cast_together(
    tensors: Sequence[Tensor], blocked: Sequence[bool], dtype: torch.dtype
) -> list[Tensor]:
    """`t.to(dtype)` of weights [O, I] and biases [O], by one copy and one cast of all; where
    `blocked`, rows (i, j) with j = 0, 1, 2 are in the order (j, i), as `blocked_rows` gives them.

    tensors: of one dtype. Returns contiguous views of one tensor or a few, in the order of
    `tensors`; all are differentiated if one is.
    """
    groups: dict[Any, list[int]] = {}
    for k, t in enumerate(tensors):  # a permuted copy for each shape
        groups.setdefault(t.shape if blocked[k] else k, []).append(k)
    order = [k for group in groups.values() for k in group]
    flat = torch.cat([tensors[k].reshape(-1) for k in order]).to(dtype)
    parts = flat.split([sum(tensors[k].numel() for k in group) for group in groups.values()])
    result = list(tensors)
    for (first, *rest), part in zip(groups.values(), parts, strict=True):
        shape = tensors[first].shape
        if not blocked[first]:
            result[first] = part.view(shape)
            continue
        rows = part.view(1 + len(rest), shape[0] // 3, 3, -1).transpose(1, 2).contiguous()
        for k, copy in zip((first, *rest), rows.view(-1, *shape).unbind(), strict=True):
            result[k] = copy
    return result


def _affine(blocks: Sequence[Any], emb: Tensor) -> list[Sequence[Tensor]]:
    layers = [block.affine for block in blocks]
    weight, bias = (
        torch.cat([getattr(layer, name) for layer in layers]).to(emb.dtype)
        for name in ("weight", "bias")
    )
    widths = [block.out_channels for block in blocks for _ in range(1 + block.adaptive_scale)]
    parts = iter(F.linear(emb, weight, bias).split(widths, dim=1))
    return [[next(parts) for _ in range(1 + block.adaptive_scale)] for block in blocks]


def _late(blocks: Sequence[Any]) -> list[Tensor | None]:
    """conv1's bias, and the skip path's with it where that has one."""
    late: list[Tensor | None] = [block.conv1.bias for block in blocks]
    two = [k for k, block in enumerate(blocks) if block.skip is not None and block.skip.kernel]
    pairs = [(blocks[k].conv1.bias, blocks[k].skip.bias) for k in two]
    if len({(a.dtype, b.dtype) for a, b in pairs}) != 1:  # of several dtypes: pair by pair
        for k, (a, b) in zip(two, pairs, strict=True):
            late[k] = a + b
        return late
    first, second = (torch.cat(biases) for biases in zip(*pairs, strict=True))
    sums = (first + second).split([len(a) for a, _ in pairs])
    for k, total in zip(two, sums, strict=True):
        late[k] = total
    return late


def _copies(blocks: Sequence[Any], dtype: torch.dtype) -> list[dict[str, Copy]]:
    """Of the blocks' 1x1 convolutions that are stored in another dtype or order. Only queries, keys
    and values have their bias in it: other biases are added by the op that follows."""
    tensors: dict[tuple[int, str, str], Tensor] = {}
    for k, block in enumerate(blocks):
        for name in ("skip", "qkv", "proj"):
            conv = getattr(block, name, None)
            if conv is None or conv.kernel != 1:
                continue
            weight: Tensor = conv.weight  # read once: an adapter computes it
            if weight.dtype != dtype or conv.blocks_of:
                tensors[k, name, "weight"] = weight.flatten(1)
            if conv.blocks_of:
                tensors[k, name, "bias"] = conv.bias
    alike: dict[tuple[torch.dtype, bool], list[tuple[int, str, str]]] = {}
    for place, t in tensors.items():  # what is frozen must not get a gradient
        alike.setdefault((t.dtype, t.requires_grad), []).append(place)
    for places in alike.values():
        own = [tensors[place] for place in places]
        made = cast_together(own, [name == "qkv" for _, name, _ in places], dtype)
        tensors |= dict(zip(places, made, strict=True))
    result: list[dict[str, Copy]] = [{} for _ in blocks]
    for k, name, kind in tensors:
        if kind == "weight":
            result[k][name] = (tensors[k, name, kind], tensors.get((k, name, "bias")))
    return result
