"""What trains in the place of a network's own weights: adapters of low rank."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveInt

from fasttrain.settings.base import Settings

__all__ = ["AdaptSettings", "LayerKind"]

LayerKind = Literal["conv", "attention", "mlp", "skip", "embedding"]


def _once(layers: tuple[LayerKind, ...] | None) -> tuple[LayerKind, ...] | None:
    if layers is not None and len(set(layers)) < len(layers):
        raise ValueError("a kind of layer is named twice")
    return layers


class AdaptSettings(Settings):
    """Adapters: the weights W [outputs, inputs] of some layers stay, and few numbers beside them
    train. Exports and images have them merged into the weights."""

    kind: Literal["lora", "rotate"]
    """`lora`: W + B A of rank `rank`, B zero at the start. `rotate`: R W, where R is an orthogonal
    map of the outputs that turns `rank` pairs of directions, and nothing at the start."""
    rank: PositiveInt = Field(default=8, le=4096)
    """Rank of each layer's adapter; of a smaller layer, what it has room for."""
    layers: Annotated[tuple[LayerKind, ...] | None, Field(min_length=1), AfterValidator(_once)] = (
        None
    )
    """Kinds of layers that get one: `conv` (the blocks' spatial convolutions), `attention`, `mlp`,
    `skip` (the blocks' skip paths), `embedding` (noise level, classes, and what they do in the
    blocks). None: those of the first three that the network has."""
    besides: Literal["nothing", "unfrozen"] = "nothing"
    """What trains beside the adapters: nothing, or what `freeze` leaves of the other weights."""
