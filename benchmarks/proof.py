"""A one-step generator beside its teacher, from finished runs: curves, numbers, what was tried.

    python -m benchmarks.proof fashion-mnist --teacher runs/fashion-mnist-edm \\
        --tuned runs/d2o-f-0 runs/d2o-f-1 runs/d2o-f-2 --tried runs/gamma-3e-4 ...
    python -m benchmarks.page

Writes `benchmarks/results/NAME.json` and, of the first run, `docs/NAME.png`. The runs of `--tuned`
differ in their seeds alone. The first is evaluated (`fasttrain evaluate RUN`: one step before and
after, the teacher's 35 evaluations, other real images) at its best checkpoint, unless the result
file has this already; of the others stand their own evaluations, with the same protocol, of one
step after. A run of `--tried` is told by the settings that differ from the recipe's, and its curve;
those of the result file as it stands stay unless `--forget` is given.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.demo import machine, picture
from fasttrain.checkpoints.saved import SavedRun
from fasttrain.checkpoints.stats import read_stats
from fasttrain.evaluation.result import values_of
from fasttrain.evaluation.summary import evaluate_run, rows_of
from fasttrain.sampling.generate import generate
from fasttrain.sampling.pictures import png_bytes
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"
METRICS = ("fd", "kd", "precision", "recall")
RECIPES = {"fashion-mnist": "fashion-mnist-cpu-d2o-f", "emoji32": "emoji32-d2o-f"}
APART = (
    "run",
    "init",
    "seed",
    "from",
    "from_",
    "images",
    "data",
    "report_every",
    "checkpoint",
    "sample",
    "evaluate",
)
"""Settings that do not tell trainings apart."""


def curve(run: Path) -> list[dict[str, float]]:
    """Images and metrics of each evaluation of a run."""
    return [
        {name: line[name] for name in ("images", "seconds", *METRICS)}
        for line in read_stats(run)
        if "fd" in line
    ]


def changes(settings: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What a run sets otherwise than the recipe, by path."""

    def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        for name, value in values.items():
            if isinstance(value, Mapping):
                yield from leaves(value, f"{prefix}{name}.")
            else:
                yield prefix + name, value

    usual = dict(leaves(recipe))
    return {
        path: value
        for path, value in leaves(settings)
        if path.split(".")[0] not in APART
        and not path.endswith("precision")  # what it measured on a machine
        and path in usual
        and not _same(value, usual[path])
    }


def _same(value: Any, usual: Any) -> bool:
    """Whether a run's value is the recipe's; items of lists may lack settings that came later."""
    if isinstance(value, list) and isinstance(usual, list) and len(value) == len(usual):
        return all(map(_same, value, usual))
    if isinstance(value, Mapping) and isinstance(usual, Mapping):
        return all(name in usual and _same(value[name], usual[name]) for name in value)
    return bool(value == usual)


def training(run: Path) -> dict[str, Any]:
    last = read_stats(run)[-1]
    return {"images": last["images"], "seconds": round(last["seconds"]), "curve": curve(run)}


def measured(run: Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """The rows of a run's table, at its best checkpoint; known: of before."""
    if known.get("curve") == curve(run):
        return dict(known)
    result = evaluate_run(run, "best")
    return {
        "seed": SavedRun.open(run).settings.seed,
        **training(run),
        "images": result["model"]["images_seen"],
        "metrics": {metric: values_of(result, metric) for metric in METRICS},
        "protocol": result["protocol"],
    }


def measured_itself(run: Path, first: Mapping[str, Any]) -> dict[str, Any]:
    """The best of a run's own evaluations. first: the row of a run with the same protocol."""
    settings = SavedRun.open(run).settings
    if settings.evaluate.samples != first["protocol"]["images"]:
        raise SystemExit(f"{run}: its evaluations are of {settings.evaluate.samples} images")
    best = min(curve(run), key=lambda line: line["fd"])
    return {
        "seed": settings.seed,
        **training(run),
        "images": best["images"],
        "metrics": {metric: {"one_step_after": best[metric]} for metric in METRICS},
        "protocol": first["protocol"],
    }


def times_of(run: Path) -> dict[str, float]:
    """CPU seconds for 64 images in float32, the least of three times, by row of the run's table."""
    saved = SavedRun.open(run, "best")
    found = {}
    for row in rows_of(saved.settings):
        if row.sampler is not None:
            network, seconds = row.network(saved), []
            for _ in range(3):
                began = time.process_time()
                generate(row.sampler, network, range(64))
                seconds.append(time.process_time() - began)
            found[row.name] = round(min(seconds), 3)
    return found


def proof_part(result: Mapping[str, Any]) -> str:
    """Markdown: the table of rows and seeds, and what was tried."""
    about, teacher, tuned = result["machine"], result["teacher"], result["tuned"]
    rows = rows_of(load_settings(result["recipe"], [], FinetuneSettings))
    lines = [
        f"{about['cpu']}, torch {about['torch']}, one thread beside other work, from "
        f"`benchmarks/results/{result['name']}.json`: {teacher['images']:,} images of pre-training "
        f"in {teacher['seconds'] / 3600:.1f} hours, the first seed's fine-tuning in "
        f"{tuned[0]['seconds'] / 3600:.1f}. {tuned[0]['protocol']['images']:,} images, lite2, 64 "
        f"components; protocol {tuned[0]['protocol']['code']}. The best checkpoint is chosen by "
        f"the fd that is here, of the same images and seeds, which flatters it; the other rows are "
        f"not chosen. 64 images take the diffusion model "
        f"{result['seconds_64']['teacher_18']:.1f} CPU seconds and one step "
        f"{result['seconds_64']['one_step_after']:.2f}.",
        "",
        "| | seed, images of the best checkpoint | fd | kd | precision | recall |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        for run in tuned if row.name == "one_step_after" else tuned[:1]:
            found = [run["metrics"][metric].get(row.name) for metric in METRICS]
            cells = [
                "" if x is None else f"{x:.{d}f}" for x, d in zip(found, (1, 3, 3, 3), strict=True)
            ]
            tuning = f"{run['seed']}, {run['images']:,}" if row.name == "one_step_after" else ""
            lines.append(f"| {row.title} | {tuning} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tried_part(result: Mapping[str, Any]) -> str:
    """Markdown: how fd fell in every run, those that were tried among them."""
    lines = [
        f"fd by thousands of images seen, from `benchmarks/results/{result['name']}.json`:",
        "",
        "| run | thousand images: fd | recall at last |",
        "|---|---|---|",
        _line("the teacher's pre-training, 35 evaluations", result["teacher"]["curve"]),
    ]
    for run in result["tuned"]:
        lines.append(_line(f"the recipe, seed {run['seed']}", run["curve"]))
    for run in result["tried"]:
        what = ", ".join(f"{name}={value}" for name, value in run["changes"].items())
        lines.append(_line(f"{what or 'the recipe'}{run['note']}", run["curve"]))
    return "\n".join(lines)


def _line(what: str, points: Sequence[Mapping[str, float]]) -> str:
    course = ", ".join(f"{point['images'] / 1000:.0f}: {point['fd']:.0f}" for point in points)
    return f"| {what} | {course} | {points[-1]['recall']:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--tuned", type=Path, nargs="+", required=True, help="one for each seed")
    parser.add_argument("--tried", nargs="*", default=[], help="RUN, or RUN=a note in brackets")
    parser.add_argument("--forget", action="store_true", help="drop the tried runs of before")
    options = parser.parse_args()
    recipe = load_settings(RECIPES[options.name], [], FinetuneSettings).model_dump(mode="json")
    out = RESULTS / f"{options.name}.json"
    before = json.loads(out.read_text()) if out.exists() else {"tuned": [{}], "tried": []}
    tried = [] if options.forget else before["tried"]
    for text in options.tried:
        path, _, note = text.partition("=")
        settings = yaml.safe_load((Path(path) / "config.yaml").read_text(encoding="utf-8"))
        found = {"changes": changes(settings, recipe), "note": f" ({note})" if note else ""}
        tried.append(found | training(Path(path)))
    first = measured(options.tuned[0], before["tuned"][0])
    others = [measured_itself(run, first) for run in options.tuned[1:]]
    result = {
        "name": options.name,
        "recipe": RECIPES[options.name],
        "machine": machine(),
        "note": "The machine was shared with other work; each training had one thread.",
        "teacher": training(options.teacher),
        "seconds_64": times_of(options.tuned[0]),
        "tuned": [first, *others],
        "tried": tried,
    }
    out.write_text(json.dumps(result, indent=1) + "\n")
    grids = picture(SavedRun.open(options.tuned[0], "best"))
    (DOCS / f"{options.name}.png").write_bytes(png_bytes(grids))


if __name__ == "__main__":
    main()
