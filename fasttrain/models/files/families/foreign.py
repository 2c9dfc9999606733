"""What a reader of a family is given, and what it gives: the network, its preconditioning and its
weights, under our names."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from fasttrain.system.errors import UserError
from fasttrain_data.pickle_data import Refused, shown

__all__ = ["Foreign", "Latents", "Weights", "refusing"]

MAX_TEXT = 10_000


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """One line, a UserError, of a file that holds something else than its readers look for: they
    check names, and what they compute with checks shapes and kinds."""
    try:
        yield
    except UserError:
        raise
    except Refused as error:
        raise UserError(f"{path} is refused: {error}") from None
    except Exception as error:  # reshaping and building raise nearly anything
        if isinstance(error, OSError):
            raise
        if isinstance(error, MemoryError) or "memory" in str(error):  # torch says it so
            raise UserError(f"{path} is refused: there is no memory for what it holds") from None
        why = shown((str(error).splitlines() or [type(error).__name__])[0])
        raise UserError(
            f"{path} is refused: its weights or settings are not of the shapes and kinds of their "
            f"family ({why})"
        ) from None


class Weights(dict[str, Tensor]):
    """A file's tensors by name. One that is asked for and not there is a mistake of the file's."""

    def __init__(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        super().__init__(tensors)
        self.path = path

    def __missing__(self, name: str) -> NoReturn:
        raise UserError(f"{self.path} is refused: it has no {name}")


@dataclass(frozen=True)
class Latents:
    """How a network's numbers become those that a decoder takes, channel by channel:
    `(x - bias) / scale`."""

    scale: tuple[float, ...]
    bias: tuple[float, ...]
    low: float = -1.0
    """The decoder's black; white is 1."""

    @classmethod
    def parsed(cls, text: str) -> Latents:
        """From the JSON of its fields. Raises ValueError on anything else."""
        values: Any = json.loads(text) if len(text) <= MAX_TEXT else None
        try:
            made = cls(tuple(map(float, values["scale"])), tuple(map(float, values["bias"])))
            low = float(values["low"])
        except (TypeError, KeyError, ValueError):
            raise ValueError("its latents are described in an unknown way") from None
        if len(made.scale) != len(made.bias) or not all(map(math.isfinite, (*made.bias, low))):
            raise ValueError("its latents are described in an unknown way")
        if not all(0 < value < math.inf for value in made.scale):
            raise ValueError("its latents are described in an unknown way")
        return cls(made.scale, made.bias, low)


@dataclass(frozen=True)
class Foreign:
    """A model out of somebody else's file.

    Attributes:
        description: what the file is, for people.
        network: fields of `NetworkSettings`.
        weights: float tensors by our names, those of the U-Net or transformer below `model.`;
            filters that do not train may be left out.
        sigma: noise level of a one-step generator's step; None for a diffusion model.
        latents: of a network that works on latents.
    """

    description: str
    network: dict[str, Any]
    weights: dict[str, Tensor]
    sigma: float | None = None
    latents: Latents | None = None
