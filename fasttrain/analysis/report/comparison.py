"""`fasttrain compare RUN RUN ...`: runs side by side on one HTML page: pictures of the same seeds,
their curves, the settings that differ, and their metrics by protocol.

    runs = [Compared.open(path) for path in paths]
    write_comparison(runs, Path("compare.html"))
    json.dumps(facts_of(runs))                     # the same, for a script

Metrics are compared under one protocol's code only: each code has a table, and a chart, of its own.
The page is as self-contained as a report.
"""

from __future__ import annotations

import hashlib
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from fasttrain.analysis.report.charts import charts_of
from fasttrain.analysis.report.files import evaluation_of
from fasttrain.analysis.report.grids import Layout, Picture, picture_of
from fasttrain.analysis.report.svg import Chart, Series
from fasttrain.analysis.report.template import duration, number, template
from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.rates import flat
from fasttrain.checkpoints.saved import SavedRun
from fasttrain.checkpoints.stats import read_stats
from fasttrain.evaluation.protocol import HIGHER_IS_BETTER, METRICS, UNREADABLE, said
from fasttrain.evaluation.result import read_result
from fasttrain.evaluation.summary import Row, rows_of
from fasttrain.models.audit import audit_of
from fasttrain.sampling.sampler import Sampler
from fasttrain.settings.trainings import training_of
from fasttrain.system.errors import UserError
from fasttrain.system.files import probe, write_atomic
from fasttrain_kernels import using

__all__ = ["MOST", "Compared", "facts_of", "write_comparison"]

MOST = 8
"""Runs on a page: more have no colours of their own."""


@dataclass(frozen=True)
class Compared:
    """A run on the page, at its newest checkpoint.

    Attributes:
        name: short, and different from the others'.
        stats: lines of its statistics up to the checkpoint.
        results: its results that can be read, by file name.
    """

    name: str
    saved: SavedRun
    stats: list[dict[str, Any]]
    results: dict[str, dict[str, Any]]

    @classmethod
    def open(cls, run: Path, name: str) -> Compared:
        """Read a run at its newest intact checkpoint. Raises UserError without one."""
        saved = SavedRun.open(run)
        lines = [x for x in read_stats(run) if x.get("images", math.inf) <= saved.images]
        results = {}
        for path in sorted(run.glob("evaluation*.json")):
            with suppress(OSError, ValueError):
                results[path.name] = read_result(path)
        return cls(name, saved, lines, results)

    @property
    def seconds(self) -> float:
        """Of training, earlier sessions included."""
        return float(self.saved.state.get("seconds") or 0)

    @cached_property
    def protocol(self) -> str:
        """The code of its evaluations while it trained, by the newest checkpoint with one; else
        the settings that they follow from."""
        steps = checkpoint.steps(self.saved.path / "checkpoints")
        for step in (self.saved.step, *reversed(steps)):
            with suppress(UserError, *UNREADABLE):
                return f"protocol {step.state['evaluation']['protocol']['code']:.20}"
        parts = {"evaluate": {"extractor", "samples", "components"}, "data": {"path", "mix"}}
        how = self.saved.settings.model_dump_json(include=parts)
        return f"unknown protocol, settings {hashlib.sha256(how.encode()).hexdigest()[:8]}"

    @property
    def own_row(self) -> Row:
        """The row of its table that is the run's own model."""
        rows = rows_of(self.saved.settings)
        return rows[-1] if training_of(self.saved.settings).generator else rows[1]


def open_all(runs: Sequence[Path]) -> list[Compared]:
    """The runs to compare, under the shortest names that tell them apart.

    Raises UserError when there are too few or too many, one is named twice, or one cannot be
    opened.
    """
    places = [run.resolve() for run in runs]
    if not 2 <= len(runs) <= MOST:
        raise UserError(f"compare takes 2 to {MOST} runs, not {len(runs)}")
    if again := next((run for run in runs if places.count(run.resolve()) > 1), None):
        raise UserError(f"{again} is there twice: name different runs")
    depth = 1
    while len({place.parts[-depth:] for place in places}) < len(places):
        depth += 1
    names = ["/".join(place.parts[-depth:]) for place in places]
    return [Compared.open(run, name) for run, name in zip(runs, names, strict=True)]


def facts_of(runs: Sequence[Compared]) -> dict[str, Any]:
    """All that the page says in numbers and words, for a script."""
    return {
        "runs": [
            {
                "name": run.name,
                "path": str(run.saved.path),
                "training": training_of(run.saved.settings).task,
                "images": run.saved.images,
                "of": run.saved.settings.images,
                "seconds": run.seconds or None,
                "trainable": audit_of(run.saved.settings).total.trainable,
                "base_sha256": (run.saved.state.get("base") or {}).get("sha256"),
            }
            for run in runs
        ],
        "settings": differences(runs),
        "metrics": [
            {"code": code, "rows": rows, "protocol": lines} for code, lines, rows in _by_code(runs)
        ],
    }


def write_comparison(runs: Sequence[Compared], out: Path, *, trust_urls: bool = False) -> Path:
    """Write the page, completely or not at all; returns its path.

    trust_urls: open the URL of the data that the first run names.
    """
    probe(out)
    facts = facts_of(runs)
    networks = [run.saved.settings.network for run in runs]
    layout = Layout.of(networks[0])
    page = template("compare.html.j2").render(
        names=[run.name for run in runs],
        facts=_table(facts["runs"]),
        pictures=list(_pictures(runs, layout, trust_urls)),
        layout=layout,
        same_classes=len({network.label_dim for network in networks}) == 1,
        charts=charts(runs),
        settings=facts["settings"],
        tables=[_marked(entry) for entry in facts["metrics"]],
        missing=[shlex.quote(str(run.saved.path)) for run in runs if not run.results],
        now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    write_atomic(out, page)
    return out


def _pictures(runs: Sequence[Compared], layout: Layout, trust_urls: bool) -> Iterator[Picture]:
    """Real images of the first run's data, then each run's own images."""
    first = runs[0].saved
    yield picture_of(rows_of(first.settings)[0], first, layout, trust_urls)
    for k, run in enumerate(runs):
        with using(run.saved.settings.kernels):
            drawn = picture_of(run.own_row, run.saved, layout)
        detail = f"{drawn.title}; {drawn.detail}"
        yield replace(drawn, name=f"run-{k}", title=run.name, detail=detail)


def charts(runs: Sequence[Compared]) -> list[Chart]:
    """A chart for each curve of the runs' reports, with a line for each run that has it; the curve
    of a metric has one for each protocol, with the samplers where they differ."""
    lines: dict[tuple[str, str], list[Series]] = {}
    titles: dict[str, str] = {}
    samplers = [Sampler.of(run.saved.settings).detail for run in runs]
    for k, run in enumerate(runs):
        evaluation, _ = evaluation_of(run.saved.path, run.saved.images)
        for chart in charts_of(run.stats, evaluation, run.saved.settings):
            titles[chart.name] = chart.title
            measured = chart.name in METRICS
            title = (
                f"{run.name}, {samplers[k]}" if measured and len(set(samplers)) > 1 else run.name
            )
            for line in chart.series:
                label = run.protocol if measured else line.label if len(chart.series) > 1 else ""
                own = replace(line, label=title, colour=f"run-{k}")
                lines.setdefault((chart.name, label), []).append(own)
    return [
        Chart(
            f"{name}-{label}".replace(" ", "-") if label else name,
            f"{titles[name]}: {label}" if label else titles[name],
            max(line.points[-1][0] for line in series),
            series,
            zero=name == "speed",
        )
        for (name, label), series in lines.items()
    ]


def differences(runs: Sequence[Compared]) -> dict[str, list[Any]]:
    """Setting -> its value in each run, None where a run has no such setting; those that differ."""
    values = [flat(run.saved.settings.model_dump(mode="json", by_alias=True)) for run in runs]
    names = dict.fromkeys(name for each in values for name in each if name != "run")
    rows = {name: [each.get(name) for each in values] for name in names}
    return {name: row for name, row in rows.items() if any(value != row[0] for value in row)}


def _by_code(runs: Sequence[Compared]) -> list[tuple[str, list[str], list[dict[str, Any]]]]:
    """For each protocol: its code, its lines, and a row for each run that was measured by it,
    after the real images where their row is known."""
    found: dict[str, tuple[list[str], list[dict[str, Any]]]] = {}
    for run in runs:
        for file, result in run.results.items():
            lines = said(result["protocol"])
            code = str(result["protocol"].get("code") or "\n".join(lines))
            _, rows = found.setdefault(code, (lines, []))
            for name, row in result["rows"].items():
                floor = name == "real_floor" and not any(each["run"] is None for each in rows)
                if not floor and name not in (run.own_row.name, "model"):
                    continue
                values = {m: row["metrics"][m]["value"] for m in METRICS if m in row["metrics"]}
                entry = {
                    "run": None if floor else run.name,
                    "title": str(row["title"]),
                    "images": None if floor else result["model"]["images_seen"],
                    "seeds": None if floor else result["model"]["seeds"],
                    "sampler": None if floor else row["sampler"],
                    "weights": None if floor else row["weights"],
                    "vae": None if floor else result["model"].get("vae"),
                    "file": file,
                    "metrics": values,
                }
                rows.insert(0 if floor else len(rows), entry)
    return [(code, lines, rows) for code, (lines, rows) in found.items()]


def _table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The runs' facts in words: training, images, time, rate, what trains, base model."""
    table = []
    for row in rows:
        whole = row["images"] >= row["of"]
        images = f"{row['images']:,}" + ("" if whole else f" of {row['of']:,}")
        seconds = row["seconds"]
        table.append(
            [
                row["training"],
                images,
                duration(seconds) if seconds else "–",
                number(row["images"] / seconds) if seconds else "–",
                f"{row['trainable']:,}",
                (row["base_sha256"] or "–")[:8],
            ]
        )
    return table


def _marked(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A table of metrics with the columns that it has, what differs from run to run, and the best
    of the runs in each."""
    rows = entry["rows"]
    columns = [metric for metric in METRICS if any(metric in row["metrics"] for row in rows)]
    best = {}
    for metric in columns:
        own = [row["metrics"][metric] for row in rows if row["run"] and metric in row["metrics"]]
        finite = [value for value in own if math.isfinite(value)]
        if len(finite) > 1:
            best[metric] = max(finite) if metric in HIGHER_IS_BETTER else min(finite)
    differ = [
        name
        for name in ("seeds", "sampler", "weights", "vae")
        if len({row[name] for row in rows if row["run"]}) > 1
    ]
    return {**entry, "columns": columns, "differ": differ, "best": best}
