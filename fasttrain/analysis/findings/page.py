"""Experiments by name, their results in `OUT/NAME.json`, and the page of all of them,
`OUT/findings.html`: self-contained, without scripts, everything escaped.

    analyze("budget", lab)                     # measures, or takes the finished result as it is
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from fasttrain.analysis.findings import (
    budget,
    freezing,
    frequency,
    minima,
    objectives,
    pretraining,
)
from fasttrain.analysis.findings.lab import Lab
from fasttrain.analysis.findings.result import Curve, HeatMap, Result
from fasttrain.analysis.report.svg import Chart, Series
from fasttrain.system.errors import UserError
from fasttrain.system.files import write_atomic

__all__ = ["EXPERIMENTS", "analyze", "write_page"]

EXPERIMENTS: dict[str, Callable[[Lab], Result]] = {
    "budget": budget.experiment,
    "freezing": freezing.experiment,
    "pretraining": pretraining.experiment,
    "minima": minima.experiment,
    "frequency": frequency.experiment,
    "objectives": objectives.experiment,
}
"""In the order of the page."""
COLOURS = ("teacher", "after", "before", "judge", "real", "ink")


def analyze(name: str, lab: Lab) -> Path:
    """Make an experiment, or `all`, that is not finished under this protocol; the page's path.

    Raises UserError for an unknown name, for a folder of runs of another base model, other settings
    or another number of images, and what its trainings raise.
    """
    if name != "all" and name not in EXPERIMENTS:
        raise UserError(f"no experiment {name!r}: choose one of {', '.join(EXPERIMENTS)}, or all")
    lab.world.on_main(partial(_claim, lab))
    wanted_names = list(EXPERIMENTS) if name == "all" else [name]
    if name == "all" and lab.pretraining is None:
        wanted_names.remove("pretraining")
        if lab.world.is_main:
            print(f"without pretraining: {lab.base} is not a run of `fasttrain pretrain`")
    for wanted in wanted_names:
        kept = _kept(lab.out, wanted)
        if kept is None or not _same(kept.about, lab.about()):
            result = EXPERIMENTS[wanted](lab)
            text = json.dumps(result.to_dict(), indent=1)
            lab.world.on_main(partial(_write, lab.out, wanted, text))
    return lab.world.on_main(partial(write_page, lab.out))


def _same(kept: Mapping[str, Any], about: Mapping[str, Any]) -> bool:
    """Whether results are of this protocol, as far as they say: earlier versions had no hashes."""
    return kept == {name: value for name, value in about.items() if name in kept}


def _claim(lab: Lab) -> None:
    """Note whose runs a folder holds; before anything else is written. Raises UserError when they
    are another's: a finished run is taken as it is."""
    about = lab.about() | {"base": str(lab.base), "seeds": None}
    file = lab.out / "lab.json"
    results = [kept for name in EXPERIMENTS if (kept := _kept(lab.out, name)) is not None]
    theirs = any(
        not _same(kept.about | {"seeds": 0}, lab.about() | {"seeds": 0}) for kept in results
    )
    if theirs or (file.is_file() and not _same(json.loads(file.read_text("utf-8")), about)):
        raise UserError(
            f"{lab.out} holds runs of another base model, recipe or with --quick, or the base has "
            f"trained on, or settings have changed, since: name another folder with --out"
        )
    if not file.is_file():
        lab.out.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps(about))


def _write(out: Path, name: str, text: str) -> None:
    write_atomic(out / f"{name}.json", text + "\n")


def _kept(out: Path, name: str) -> Result | None:
    """A finished result; None where there is none that can be read."""
    try:
        return Result.from_dict(json.loads((out / f"{name}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_page(out: Path) -> Path:
    """Write the page of all results in a folder; returns its path."""
    results = [kept for name in EXPERIMENTS if (kept := _kept(out, name)) is not None]
    sections = [
        {
            "result": result,
            "charts": [_chart(result.name, k, curve) for k, curve in enumerate(result.curves)],
            "maps": [{"map": heat, "shades": shades(heat)} for heat in result.maps],
        }
        for result in results
    ]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = resources.files("fasttrain").joinpath("analysis/findings/page.html.j2")
    template = environment.from_string(source.read_text(encoding="utf-8"))
    write_atomic(out / "findings.html", template.render(sections=sections))
    return out / "findings.html"


def _chart(name: str, k: int, curve: Curve) -> Chart:
    lines = {label: [(x, y) for x, y in points] for label, points in curve.lines.items() if points}
    end = max((x for points in lines.values() for x, _ in points), default=1.0)
    series = [
        Series(label, COLOURS[i % len(COLOURS)], points, marked=len(points) < 20)
        for i, (label, points) in enumerate(lines.items())
    ]
    return Chart(f"{name}-{k}", curve.title, end, series, across=curve.across)


def shades(heat: HeatMap) -> list[list[dict[str, Any]]]:
    """Each cell's text, and how far it is from the lowest value (0) to the highest (100)."""
    numbers = [value for row in heat.values for value in row if value is not None]
    low, high = (min(numbers), max(numbers)) if numbers else (0.0, 1.0)
    return [
        [
            {
                "text": "" if value is None else f"{value:.2f}",
                "share": 0 if value is None else round(100 * (value - low) / ((high - low) or 1)),
            }
            for value in row
        ]
        for row in heat.values
    ]
