"""How little data it takes: fd over the images seen, D2O against D2O-F."""

from __future__ import annotations

from typing import Any

from fasttrain.analysis.findings.curves import apart, spread
from fasttrain.analysis.findings.lab import Lab
from fasttrain.analysis.findings.result import Curve, Result, Table

__all__ = ["compared", "experiment"]

WAYS = {"D2O": "freeze=none", "D2O-F": "freeze=1"}


def experiment(lab: Lab) -> Result:
    """One run of each way and seed; its evaluations are the points."""
    curves = {
        way: [lab.curve(lab.tuned(way.lower(), seed, change)) for seed in range(lab.seeds)]
        for way, change in WAYS.items()
    }
    rows = compared(curves["D2O"], curves["D2O-F"])
    better = sum(row["apart"] and row["D2O-F"].mean < row["D2O"].mean for row in rows)
    worse = sum(row["apart"] and row["D2O-F"].mean > row["D2O"].mean for row in rows)
    last = rows[-1]
    return Result(
        name="budget",
        title="How little data it takes",
        claim="D2O-F is as good as D2O or better, and strong after few images.",
        found=(
            f"of {len(rows)} budgets D2O-F is clearly better at {better} and clearly worse at "
            f"{worse}; after {last['images']:,} images its fd is {last['D2O-F'].text}, D2O's "
            f"{last['D2O'].text}."
        ),
        protocol=(
            "fd of the averaged generator's one step to real images, which training sees, too, in "
            "one run of each seed; clearly: the seeds' ranges do not overlap (never with one)."
        ),
        about=lab.about(),
        data={"curves": curves},
        tables=[
            Table(
                ("images seen", *WAYS),
                [(f"{r['images']:,}", *(r[way].text for way in WAYS)) for r in rows],
            )
        ],
        curves=[
            Curve(
                "fd over images seen",
                {way: [(r["images"], r[way].mean) for r in rows] for way in WAYS},
            )
        ],
    )


def compared(
    plain: list[list[tuple[int, float]]], frozen: list[list[tuple[int, float]]]
) -> list[dict[str, Any]]:
    """At each number of images that all runs have: the spread of both, and whether it is apart.
    plain, frozen: a curve for each seed."""
    tables = [dict(curve) for curve in (*plain, *frozen)]
    common = sorted(set.intersection(*(set(table) for table in tables)))
    rows = []
    for images in common:
        values = [table[images] for table in tables]
        one, other = spread(values[: len(plain)]), spread(values[len(plain) :])
        rows.append({"images": images, "D2O": one, "D2O-F": other, "apart": apart(one, other)})
    return rows
