"""A model's class embedding for other classes than those that it was trained on.

    weights, line = with_classes(network, weights, own=["cat", "fox"], theirs=["dog", "cat"])

A class of the same name (in any case) keeps its row of the model's table. Without one a class
begins at the mean of the rows of all classes: no class in particular, which training then tells
from the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fasttrain.models.networks.network import ClassRows

__all__ = ["with_classes"]

SHOWN = 5
"""Most names of a line."""


def with_classes(
    network: Any,
    weights: Mapping[str, Tensor],
    own: Sequence[str],
    theirs: Sequence[str] | None,
    dropped: Sequence[ClassRows] = (),
) -> tuple[dict[str, Tensor], str]:
    """The weights of a diffusion model with the class embedding that this network has, and a line
    that says what became of it.

    network: a preconditioned network with weights of its own, which stand where the model has no
    classes. own, theirs: names of the classes, in their order; those of the model may be unknown.
    dropped: the model's tables, where the network has no classes.
    """
    result, values = dict(weights), network.state_dict()
    tables: Sequence[ClassRows] = network.model.class_tables() if network.label_dim else ()
    if not tables:
        modules = tuple(f"model.{table.name.rpartition('.')[0]}." for table in dropped)
        gone = [name for name in weights if modules and name.startswith(modules)]
        for name in gone:
            del result[name]
        return result, "no classes; those of the model are dropped" if gone else "no classes"
    source: list[int | None] = []
    line = ""
    for table in tables:
        name = f"model.{table.name}"
        if name not in weights:
            module = name.rpartition(".")[0] + "."
            result |= {n: v for n, v in values.items() if n.startswith(module)}
            line = f"the model has no classes; the embedding of {len(own)} is made anew"
            continue
        rows = weights[name].movedim(table.dim, 0)
        rest = len(values[name].movedim(table.dim, 0)) - network.label_dim
        rows, more = rows.split([len(rows) - rest, rest])
        source, line = _sources(len(rows), network.label_dim, own, theirs)
        mean = rows.mean(dim=0)
        chosen = torch.stack([mean if number is None else rows[number] for number in source])
        if table.root:  # labels are multiplied by the root of their number
            chosen = chosen * math.sqrt(len(rows) / len(chosen))
        result[name] = torch.cat([chosen, more]).movedim(0, table.dim).contiguous()
    return result, line


def _sources(
    count: int, wanted: int, own: Sequence[str], theirs: Sequence[str] | None
) -> tuple[list[int | None], str]:
    """The row of the model's that each class keeps, None for the mean; and a line about it."""
    if theirs is None and count == wanted:
        return list(range(count)), f"{count} classes, kept by number: the model's have no names"
    number = {name.casefold(): row for row, name in enumerate(theirs or ())}
    source = [number.get(name.casefold()) for name in own]
    named = [name for name, row in zip(own, source, strict=True) if row is not None]
    fresh = [name for name, row in zip(own, source, strict=True) if row is None]
    parts = [f"{count:,} classes of the model, {wanted:,} here"]
    if named:
        parts.append(f"kept by name: {_listed(named)}")
    if fresh:
        parts.append(f"made anew, from the mean of all: {_listed(fresh)}")
    return source, "; ".join(parts)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
