"""The interface of a network, so that no other code depends on its class.

A network F computes `F(x, noise_labels, class_labels, augment_labels)` inside a preconditioner. Its
constructor takes `img_resolution, in_channels, out_channels` and those fields of `NetworkSettings`
that it uses, by their names; further arguments come from `network.options`. Its line in
`fasttrain.settings.registry` gives it a name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any

from torch import nn

__all__ = ["KINDS", "ClassRows", "Network", "Plain"]

KINDS = ("conv", "attention", "mlp", "skip", "embedding", "norm", "ends")
"""Kinds of layers: the blocks' spatial convolutions, attention (queries, keys, values, output),
MLPs and skip paths; what the noise level and the classes go through, in blocks and before them;
norms; and the first and last layers, which meet the image."""


@dataclass(frozen=True)
class Plain:
    """The same network in plain torch, for exports that run without fasttrain.

    Attributes:
        parts: modules whose text, from the line "copied into exports from here" on (up to "copied
            into exports up to here" where there is one), makes one file in this order. The last
            defines `build_plain(**arguments)`, which takes the arguments of the network's
            constructor (`img_channels` for both numbers of channels; without those of dropout and
            augmentation) and gives it in eval mode, under the same parameter names, called
            `plain(x, noise_labels, class_labels)`; and `FLOAT32`, the names of submodules whose
            buffers keep float32 in any dtype.
    """

    parts: tuple[str, ...]


@dataclass(frozen=True)
class ClassRows:
    """A parameter with a row for each class, and any other rows after them.

    Attributes:
        name: of the parameter. Others of its module do not depend on the classes.
        dim: the dimension of the rows.
        root: whether labels are multiplied by the root of the number of classes.
    """

    name: str
    dim: int
    root: bool = False


class Network(nn.Module, ABC):
    """Base class of trained networks.

    Attributes:
        apart: whether a block's weights are there only while it runs, as at ZeRO 3, so that nothing
            may be made of them before.
    """

    apart = False

    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks that ZeRO 3 gathers as one: every module that uses weights of its submodules
        without calling them must be in one. A block with an attribute `recompute` follows the
        setting `recompute_norms`."""

    @abstractmethod
    def freezing(self) -> Mapping[int, Sequence[str]]:
        """Names of the parameters that each level of `freeze`, 1 to 3, freezes in addition to those
        of the levels below it."""

    def kind_of(self, name: str) -> str:
        """The kind of layer that the parameter of this name belongs to, one of `KINDS`, for
        adapters and the audit; "" of a network that does not say."""
        return ""

    def class_tables(self) -> list[ClassRows]:
        """Where the classes are embedded; a network without any, or that does not say: nowhere.
        `pretrain init=` makes these for other classes."""
        return []

    def judged(self) -> list[tuple[str, int, int]]:
        """Modules whose outputs a discriminator may look at, in the order in which they run: name,
        channels, pixels (or tokens) a side. A network that does not say has none.

        Raises:
            ValueError: there are none.
        """
        raise ValueError(f"a {type(self).__name__} does not say what a discriminator may look at")

    def noise_layer(self) -> str:
        """Name of the layer with a bias, in the path of the noise level, whose output a second time
        is added to. A network that does not say has none.

        Raises:
            ValueError: there is none.
        """
        raise ValueError(f"a {type(self).__name__} does not say where it takes a second time")

    def after_step(self) -> None:
        """What is due once an optimizer has moved the weights: nothing, for most networks."""

    def changes_after_step(self) -> list[nn.Parameter]:
        """Parameters that `after_step` changes."""
        return []

    def plain(self) -> Plain | None:
        """The network in plain torch, or None: then only its weights can be exported."""
        return None

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Default of each argument of the constructor that has one."""
        return {
            name: parameter.default
            for name, parameter in signature(cls).parameters.items()
            if parameter.default is not Parameter.empty
        }
