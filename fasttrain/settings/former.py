"""Settings that earlier versions saved with their runs, and what replaced them.

    values, gone = renewed(values)          # of a run's config.yaml, never of a recipe

A run can be read, and mostly resumed, by versions that have renamed or dropped a setting since: a
renamed one takes its new name, and one that is gone is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["FORMER", "Former", "Gone", "former", "renewed"]


@dataclass(frozen=True)
class Former:
    """A setting that there was.

    Attributes:
        default: what it was unless the user set it.
        now: the setting of its section that has its meaning; None: nothing has.
        why: what became of it.
        trains: whether training goes on in another way without it.
    """

    default: Any = None
    now: str | None = None
    why: str = ""
    trains: bool = False


UNCLIPPED = Former(why="gradients are not clipped any more", trains=True)
FORMER: Mapping[str, Former] = {
    "optimizer.clip": UNCLIPPED,
    "generator.clip": UNCLIPPED,
    "engine.discriminator_zero_stage": Former(why="the heads follow engine.zero_stage"),
    "decay.images": Former(now="until", why="it is decay.until"),
    "r1.on": Former("images", now="inputs", why="it is r1.inputs"),
    "r2.on": Former("images", now="inputs", why="it is r2.inputs"),
    "latents.images": Former(now="pictures", why="it is latents.pictures"),
}
"""By the last two parts of its name."""


@dataclass(frozen=True)
class Gone:
    """A former setting of a run, with its value there."""

    name: str
    value: Any
    former: Former

    @property
    def felt(self) -> bool:
        """Whether the run had it set, and would train on in another way without it."""
        return self.former.trains and self.value != self.former.default

    def __str__(self) -> str:
        return f"{self.name}={self.value} is not a setting any more: {self.former.why}"


def former(name: str) -> Former | None:
    """The former setting of a dotted name."""
    return FORMER.get(".".join(name.split(".")[-2:]))


def renewed(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Gone]]:
    """A run's values without former settings, and these."""
    gone: list[Gone] = []
    new = _renewed(values, "", gone)
    return new, gone


def _renewed(values: Mapping[str, Any], prefix: str, gone: list[Gone]) -> dict[str, Any]:
    return dict(_pairs(values, prefix, gone))


def _pairs(values: Mapping[str, Any], prefix: str, gone: list[Gone]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        found = former(name)
        if found is not None:
            gone.append(Gone(name, value, found))
            if found.now is not None and found.now not in values:
                yield found.now, value
        elif isinstance(value, Mapping):
            yield key, _renewed(value, f"{name}.", gone)
        else:
            yield key, value
