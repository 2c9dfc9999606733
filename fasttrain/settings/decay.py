"""Schedules of a value in images seen: learning rates and the strengths of penalties.

DecaySettings(kind="cosine", until=100_000, end=0.1).factor(50_000)       # 0.55
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from fasttrain.settings.base import Settings

__all__ = ["DecaySettings"]


class DecaySettings(Settings):
    """Schedule of a value in images seen: a factor that goes from 1 at `begin` to `end`, and stays
    there."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    """`constant`: the factor is 1. `linear`: a straight line. `cosine`: half a period of a cosine,
    flat at both ends."""
    begin: NonNegativeInt = 0
    """Images seen until which the factor stays 1."""
    until: PositiveInt | None = None
    """Images seen when the factor reaches `end`. Not `images` of the run, so that a run which is
    trained longer keeps its schedule."""
    end: NonNegativeFloat = 0.0
    """The last factor."""

    def factor(self, images: int) -> float:
        """The factor after `images` images."""
        if self.kind == "constant" or self.until is None:
            return 1.0
        way = min(max(images - self.begin, 0) / (self.until - self.begin), 1.0)
        left = 1 - way if self.kind == "linear" else (1 + math.cos(math.pi * way)) / 2
        return self.end + (1 - self.end) * left

    @model_validator(mode="after")
    def _ends(self) -> DecaySettings:
        if self.kind != "constant" and self.until is None:
            raise ValueError(f"until: set the number of images that the {self.kind} decay takes")
        if self.kind == "constant" and self.until is not None:
            raise ValueError("kind: set linear or cosine for a decay over images")
        if self.until is not None and self.begin >= self.until:
            raise ValueError(f"begin: {self.begin} is not below until, {self.until}")
        return self
