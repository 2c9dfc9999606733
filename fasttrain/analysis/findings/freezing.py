"""How much may stay frozen: share of the parameters that train, fd, time and memory."""

from __future__ import annotations

import json
from bisect import bisect_right
from pathlib import Path

from fasttrain.analysis.findings.curves import Spread, apart, spread
from fasttrain.analysis.findings.lab import Lab
from fasttrain.analysis.findings.result import Result, Table
from fasttrain.checkpoints.stats import read_stats
from fasttrain.models.audit import audit_of

__all__ = ["experiment", "verdict"]

LEVELS = ("none", "1", "2", "3", "all-but-1", "all-but-norms")
ADAPTERS = ("lora", "rotate")
"""In the place of level 1's trained layers, with as many parameters as these at most."""
HIGHEST_RANK = 512


def experiment(lab: Lab) -> Result:
    """A fine-tuning of each level, each kind of adapter, and seed."""
    ways = {level: f"freeze={level}" for level in LEVELS}
    most = audit_of(lab.settings("like", 0, "freeze=1")).total.trainable
    ways |= {kind: f"adapt={{kind: {kind}, rank: {rank_of(lab, kind, most)}}}" for kind in ADAPTERS}
    runs = {
        way: [lab.tuned(f"level-{way}", seed, change) for seed in range(lab.seeds)]
        for way, change in ways.items()
    }
    fd = {way: [lab.curve(run)[-1][1] for run in found] for way, found in runs.items()}
    spreads = {way: spread(values) for way, values in fd.items()}
    share = {way: _share(found[0]) for way, found in runs.items()}
    seconds = {way: _seconds(found[0]) for way, found in runs.items()}
    held = {way: _held(found[0]) for way, found in runs.items()}
    rows = [
        (
            ways[way].removeprefix("freeze=").removeprefix("adapt="),
            f"{100 * share[way]:.1f} %",
            spreads[way].text,
            f"{seconds[way]:.0f}",
            f"{held[way] / 2**20:.1f}",
        )
        for way in ways
    ]
    return Result(
        name="freezing",
        title="How much may stay frozen",
        claim="With most convolutions frozen the same fine-tuning works as well or better.",
        found=verdict(spreads, share),
        protocol=(
            "fd of the averaged generator's one step after equally many images; seconds of the "
            "first seed's run; memory: weights, gradients, moments and average of the generator. "
            "all-but-1 trains what level 1 freezes; adapters train in the place of what level 1 "
            "trains, as many parameters at most."
        ),
        about=lab.about(),
        data={"fd": fd, "share": share, "seconds": seconds, "bytes": held},
        tables=[Table(("frozen", "trainable", "fd", "seconds", "MiB"), rows)],
    )


def rank_of(lab: Lab, kind: str, most: int) -> int:
    """The highest rank of adapters whose parameters are no more than `most`; 1 if none is."""

    def trained(rank: int) -> int:
        settings = lab.settings("like", 0, f"adapt={{kind: {kind}, rank: {rank}}}")
        return audit_of(settings).total.trainable

    return max(1, bisect_right(range(1, HIGHEST_RANK + 1), most, key=trained))


def verdict(fd: dict[str, Spread], share: dict[str, float]) -> str:
    """The sentence: the best level, and whether it is apart from nothing frozen."""
    best = min(fd, key=lambda level: fd[level].mean)
    if best == "none":
        second = min((level for level in fd if level != "none"), key=lambda lv: fd[lv].mean)
        how = "clearly" if apart(fd[best], fd[second]) else "not clearly"
        return (
            f"training everything is best, {fd[best].text}, {how} better than {_called(second)}, "
            f"{fd[second].text}."
        )
    how = "clearly" if apart(fd[best], fd["none"]) else "not clearly"
    return (
        f"{_called(best)}, which trains {100 * share[best]:.1f} %, has the best fd, "
        f"{fd[best].text}, "
        f"{how} better than training everything, {fd['none'].text}."
    )


def _called(way: str) -> str:
    names = {"lora": "LoRA", "rotate": "rotations"}
    return names.get(way, f"level {way}" if way.isdigit() else way)


def _share(run: Path) -> float:
    return float(json.loads((run / "audit.json").read_text())["trainable_fraction"])


def _seconds(run: Path) -> float:
    return float(read_stats(run)[-1]["seconds"])


def _held(run: Path) -> int:
    """Bytes of the generator on the first process."""
    first = json.loads((run / "memory.json").read_text())[0]
    return sum(first["generator"].values()) + int(first["average"])
