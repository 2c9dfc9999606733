"""Which objective: all of them from one diffusion model, after equally many images and after
equally many seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fasttrain.analysis.findings.curves import Spread, apart, spread
from fasttrain.analysis.findings.lab import Lab
from fasttrain.analysis.findings.result import Curve, Result, Table
from fasttrain.settings import FinetuneSettings

__all__ = ["at_seconds", "experiment", "verdict"]

SHOWN = 6
"""Lines of the chart, the best ones."""
GAN = "GAN"


def _runs(lab: Lab, seed: int) -> dict[str, Callable[[], Path]]:
    """Objective -> what makes its run."""
    like = lab.settings("like", seed)
    judge = {"extractor": "lite0", "resolution": max(32, like.network.img_resolution)}
    moments = {"judges": [judge], "half_life": max(like.batch, like.images // 8), "freeze": 1}
    # What these two train with on the digits, in digits-ratio and digits-meanflow.
    ratio = {
        "generator": _optimizer(like, rate=like.generator.rate / 5),
        "score": _optimizer(like, betas=(0.9, 0.999)),
    }
    times: dict[str, Any] = {"p_mean": 0.0, "p_std": 2.0, "share": 0.75, "power": 0.5}
    times["generator"] = _optimizer(like, betas=(0.9, 0.99))
    rates = {"score": like.generator.model_dump(mode="json"), "generator_every": 1}

    def trained(task: str, name: str, **own: Any) -> Callable[[], Path]:
        return lambda: lab.trained(task, name, seed, **own)

    return {
        GAN: lambda: lab.tuned("level-1", seed, "freeze=1"),
        **{m: trained("distill", m, method=m) for m in ("pd", "cd", "ctm", "rcd")},
        "cd and GAN": trained("distill", "cd-gan", beside_gan=True, method="cd"),
        "dmd": trained("score", "dmd", **rates),
        "class ratio": trained("score", "ratio", form="ratio", generator_every=1, **ratio),
        "sid": trained("score", "sid", form="sid", **rates),
        "dmd and GAN": trained("score", "dmd-gan", beside_gan=True, **rates),
        "MeanFlow": trained("meanflow", "meanflow", **times),
        "Frechet": trained("frechet", "frechet", **moments),
        "Frechet and GAN": trained("frechet", "frechet-gan", beside_gan=True, **moments),
    }


def _optimizer(like: FinetuneSettings, **changes: Any) -> dict[str, Any]:
    return like.generator.model_copy(update=changes).model_dump(mode="json")


def experiment(lab: Lab) -> Result:
    """A training of each objective and seed."""
    runs: dict[str, list[Path]] = {}
    for seed in range(lab.seeds):
        for name, make in _runs(lab, seed).items():
            runs.setdefault(name, []).append(make())
    timed = {name: [lab.timed(run) for run in made] for name, made in runs.items()}
    limit = min(curve[-1][0] for curves in timed.values() for curve in curves)
    by_images = {name: spread([curve[-1][1] for curve in found]) for name, found in timed.items()}
    by_seconds = {name: _spread_at(found, limit) for name, found in timed.items()}
    whole = {name: sum(c[-1][0] for c in found) / len(found) for name, found in timed.items()}
    order = sorted(by_images, key=lambda name: by_images[name].mean)
    rows = []
    for name in order:
        early = by_seconds[name]
        reached = "no evaluation yet" if early is None else early.text
        rows.append((name, by_images[name].text, reached, f"{whole[name]:.0f}"))
    return Result(
        name="objectives",
        title="Which objective",
        claim="A GAN objective alone suffices; distillation is not needed, and limits.",
        found=verdict(by_images, by_seconds),
        protocol=(
            "from one diffusion model, all with the recipe's batch, rates and number of images; "
            "the GAN and the Frechet distance train what freezing level 1 leaves, the others "
            "everything, the class ratio at a fifth of the generator's rate; one judge, lite0's "
            "pooled maps; fd is lite2's, which no objective sees, "
            "but both networks know ImageNet's labels. Equal seconds: the last evaluation by the "
            f"time that the quickest run took, {limit:.0f} s on this machine. On a CPU the GAN "
            "alone computes in the dtype that is faster there, the others in float32."
        ),
        about=lab.about(),
        data={"curves": timed, "seconds": limit},
        tables=[Table(("objective", "fd, equal images", "fd, equal seconds", "seconds"), rows)],
        curves=[
            Curve(
                "fd over images seen",
                {name: [*map(_pair, lab.curve(runs[name][0]))] for name in order[:SHOWN]},
            )
        ],
    )


def _pair(point: tuple[int, float]) -> tuple[float, float]:
    return float(point[0]), point[1]


def at_seconds(curve: Sequence[tuple[float, float]], seconds: float) -> float | None:
    """The value of a curve of (seconds, value) that was the last one by then; None: none was."""
    values = [value for time, value in curve if time <= seconds]
    return values[-1] if values else None


def _spread_at(curves: Sequence[Sequence[tuple[float, float]]], seconds: float) -> Spread | None:
    values = [value for curve in curves if (value := at_seconds(curve, seconds)) is not None]
    return spread(values) if len(values) == len(curves) else None


def verdict(by_images: dict[str, Spread], by_seconds: dict[str, Spread | None]) -> str:
    """The sentence: the best at equal images, against the GAN alone, and at equal seconds."""
    best = min(by_images, key=lambda name: by_images[name].mean)
    timed = {name: found for name, found in by_seconds.items() if found is not None}
    quickest = min(timed, key=lambda name: timed[name].mean)
    if best == GAN:
        others = {name: found for name, found in by_images.items() if name != GAN}
        second = min(others, key=lambda name: others[name].mean)
        how = "clearly" if apart(by_images[GAN], others[second]) else "not clearly"
        first = f"the GAN alone is best at equal images, fd {by_images[GAN].text}, {how} better "
        first += f"than {second}, {others[second].text}"
    else:
        how = "clearly" if apart(by_images[best], by_images[GAN]) else "not clearly"
        first = f"{best} is best at equal images, fd {by_images[best].text}, {how} better than "
        first += f"the GAN alone, {by_images[GAN].text}"
    return f"{first}; at equal seconds {quickest} is, {timed[quickest].text}."
