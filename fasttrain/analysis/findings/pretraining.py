"""Is diffusion training pre-training? The same fine-tuning from random weights and from 5, 25 and
100 percent of the pre-training."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from fasttrain.analysis.findings.curves import Spread, apart, spread
from fasttrain.analysis.findings.lab import Lab
from fasttrain.analysis.findings.result import Curve, Result, Table

__all__ = ["experiment", "verdict"]

SHARES = (0.0, 0.05, 0.25, 1.0)
"""Of the images of the base model's training; 0: after one iteration."""


def experiment(lab: Lab) -> Result:
    """A shorter pre-training for each share, with the base model's settings and seed."""
    curves: dict[float, list[Any]] = {}
    for share in SHARES:
        base = lab.base if share == 1 else lab.pretrained(share)
        name = f"from-{100 * share:.0f}-percent"
        runs = [lab.tuned(name, seed, "freeze=1", f"init={base}") for seed in range(lab.seeds)]
        curves[share] = [lab.curve(run) for run in runs]
    fd = {share: spread([curve[-1][1] for curve in found]) for share, found in curves.items()}
    return Result(
        name="pretraining",
        title="Diffusion training is pre-training",
        claim="What the diffusion model learnt is what the one-step generator is made from.",
        found=verdict(fd),
        protocol=(
            "D2O-F, level 1, from models of the same pre-training with fewer images; 0 %: after one"
            " iteration, as good as random. Frozen layers stay as they were: from random weights "
            "most of the network is random."
        ),
        about=lab.about(),
        data={"curves": {f"{share:g}": found for share, found in curves.items()}},
        tables=[Table(("pre-training", "fd"), [(f"{100 * s:.0f} %", fd[s].text) for s in SHARES])],
        curves=[Curve("fd over images seen", {f"{100 * s:.0f} %": curves[s][0] for s in SHARES})],
    )


def verdict(fd: dict[float, Spread]) -> str:
    """The sentence: whether more pre-training is better, from none to all."""
    shares = sorted(fd)
    falls = all(fd[a].mean >= fd[b].mean for a, b in pairwise(shares))
    first, last = fd[shares[0]], fd[shares[-1]]
    order = "falls with each step of pre-training" if falls else "does not fall at each step"
    how = "clearly" if apart(first, last) else "not clearly"
    better = "better" if last.mean < first.mean else "worse"
    return (
        f"fd {order}: {first.text} from random weights, {last.text} from all of it, {how} {better}."
    )
