"""Seeds in the format of the command line: `0-63` or `1,5,8-11`."""

from __future__ import annotations

from fasttrain.system.errors import UserError

__all__ = ["parse_seeds"]


MOST = 100_000
"""Largest number of images of one command."""


def parse_seeds(text: str, option: str = "--seeds") -> list[int]:
    """`0-63` or `1,5,8-11` -> numbers. Raises UserError on anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UserError(f"{option} {text!r}: write them as 0-63 or 1,5,8-11")
        low, high = int(first), int(last if dash else first)
        if high < low or high - low >= MOST or high >= 2**63:
            raise UserError(
                f"{option} {text!r}: a range is from a smaller to a larger seed, of at most "
                f"{MOST:,} seeds, below 2^63"
            )
        seeds += range(low, high + 1)
    return seeds
