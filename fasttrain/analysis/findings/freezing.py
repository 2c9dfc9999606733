"""How much may stay frozen: share of the parameters that train, fd, time and memory."""

from __future__ import annotations

import json
from pathlib import Path

from fasttrain.analysis.findings.curves import Spread, apart, spread
from fasttrain.analysis.findings.lab import Lab
from fasttrain.analysis.findings.result import Result, Table
from fasttrain.checkpoints.stats import read_stats

__all__ = ["experiment", "verdict"]

LEVELS = ("none", "1", "2", "3")


def experiment(lab: Lab) -> Result:
    """A fine-tuning of each level and seed."""
    runs = {
        level: [lab.tuned(f"level-{level}", s, f"freeze={level}") for s in range(lab.seeds)]
        for level in LEVELS
    }
    fd = {level: [lab.curve(run)[-1][1] for run in found] for level, found in runs.items()}
    spreads = {level: spread(values) for level, values in fd.items()}
    share = {level: _share(found[0]) for level, found in runs.items()}
    seconds = {level: _seconds(found[0]) for level, found in runs.items()}
    held = {level: _held(found[0]) for level, found in runs.items()}
    rows = [
        (
            level,
            f"{100 * share[level]:.1f} %",
            spreads[level].text,
            f"{seconds[level]:.0f}",
            f"{held[level] / 2**20:.1f}",
        )
        for level in LEVELS
    ]
    return Result(
        name="freezing",
        title="How much may stay frozen",
        claim="With most convolutions frozen the same fine-tuning works as well or better.",
        found=verdict(spreads, share),
        protocol=(
            "fd of the averaged generator's one step after equally many images; seconds of the "
            "first seed's run; memory: weights, gradients, moments and average of the generator."
        ),
        about=lab.about(),
        data={"fd": fd, "share": share, "seconds": seconds, "bytes": held},
        tables=[Table(("frozen", "trainable", "fd", "seconds", "MiB"), rows)],
    )


def verdict(fd: dict[str, Spread], share: dict[str, float]) -> str:
    """The sentence: the best level, and whether it is apart from nothing frozen."""
    best = min(fd, key=lambda level: fd[level].mean)
    if best == "none":
        second = min((level for level in fd if level != "none"), key=lambda lv: fd[lv].mean)
        how = "clearly" if apart(fd[best], fd[second]) else "not clearly"
        return (
            f"training everything is best, {fd[best].text}, {how} better than level {second}, "
            f"{fd[second].text}."
        )
    how = "clearly" if apart(fd[best], fd["none"]) else "not clearly"
    return (
        f"level {best}, which trains {100 * share[best]:.1f} %, has the best fd, {fd[best].text}, "
        f"{how} better than training everything, {fd['none'].text}."
    )


def _share(run: Path) -> float:
    return float(json.loads((run / "audit.json").read_text())["trainable_fraction"])


def _seconds(run: Path) -> float:
    return float(read_stats(run)[-1]["seconds"])


def _held(run: Path) -> int:
    """Bytes of the generator on the first process."""
    first = json.loads((run / "memory.json").read_text())[0]
    return sum(first["generator"].values()) + int(first["average"])
