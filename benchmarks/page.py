"""Rewrite the tables of the pages in docs/ from benchmarks/results.

    python -m benchmarks.page            # rewrites the marked parts
    python -m benchmarks.page --check    # exit status 1 if a part does not follow from its file

A part stands between `<!-- begin NAME -->` and `<!-- end NAME -->`. Every number in it comes from
the result file that it names: no number of a table is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.cpu_step_page import cpu_step_part
from benchmarks.data_page import (
    data_bench_part,
    data_foreign_part,
    data_scale_part,
    data_waiting_part,
    foreign_scale_part,
)
from benchmarks.data_safety import hostile_part, limits_part, others_part
from benchmarks.edm_import import import_part
from benchmarks.evaluation import evaluation_part
from benchmarks.families import families_part
from benchmarks.findings import findings_part
from benchmarks.gpu.table import as_markdown
from benchmarks.kills_page import kills_part
from benchmarks.latents import latents_part
from benchmarks.model.page import model_parts
from benchmarks.norm_forms import norm_forms_part
from benchmarks.objectives import objectives_part
from benchmarks.performance_page import (
    aot_part,
    demo_part,
    discriminator_part,
    finetunings_part,
    memory_part,
)
from benchmarks.precision import precision_part
from benchmarks.proof import proof_part, tried_part
from benchmarks.r1_features import r1_features_part
from benchmarks.sharding import sharding_part
from benchmarks.spanning import spanning_part
from benchmarks.threads import threads_part
from fasttrain.analysis.findings.page import EXPERIMENTS

__all__ = [
    "data",
    "data_safety",
    "evaluation",
    "faults_part",
    "gpu_part",
    "models",
    "multi_node",
    "performance",
    "reliability",
    "rewritten",
]

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"


def gpu_part(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The tables of the GPU result files, by file name; without one, that there is none."""
    if not results:
        return (
            "**No measurement on a GPU exists yet**, so nothing is claimed about speed or memory. "
            "On a GPU machine, from the root of a checkout, this makes it:\n\n"
            "    bash benchmarks/gpu.sh && python -m benchmarks.page"
        )
    return "\n\n".join(
        f"From `benchmarks/results/{name}`:\n\n{as_markdown(result)}"
        for name, result in sorted(results.items())
    )


def faults_part(result: Mapping[str, Any]) -> str:
    """The fault matrix, a fault a line."""
    machine = result["machine"]
    lines = [
        f"{len(result['rows'])} faults, {machine['cpu']}, {machine['cores']} cores, torch "
        f"{machine['torch']}, from `benchmarks/results/faults.json`:",
        "",
        "| | done | what survived |",
        "|---|---|---|",
    ]
    group = None
    for row in result["rows"]:
        lines.append(
            f"| {'' if row['group'] == group else row['group']} | {row['done']} | "
            f"{row['survives']} |"
        )
        group = row["group"]
    return "\n".join(lines)


def performance(results: Path) -> dict[str, Callable[[], str]]:
    """Parts of docs/performance.md."""
    return {
        "gpu": lambda: gpu_part(_gpu_results(results)),
        "aot": lambda: aot_part(_read(results, "aot")),
        "discriminator": lambda: discriminator_part(_read(results, "discriminator-cpu")),
        "finetunings": lambda: finetunings_part(_read(results, "finetunings")),
        "memory": lambda: memory_part(_read(results, "memory")),
        "demo": lambda: demo_part(_read(results, "demo")),
        "cpu-step": lambda: cpu_step_part(_read(results, "cpu-step"), "cpu-step"),
        "cpu-step-amx": lambda: cpu_step_part(_read(results, "cpu-step-amx"), "cpu-step-amx"),
        "cpu-step-avx2": lambda: cpu_step_part(_read(results, "cpu-step-avx2"), "cpu-step-avx2"),
        "threads": lambda: threads_part(_read(results, "threads")),
        "norm-forms": lambda: norm_forms_part(_read(results, "aot")),
        "precision": lambda: precision_part(_read(results, "precision-cpu")),
        "r1-features": lambda: r1_features_part(_read(results, "r1-features")),
        **model_parts(results),
    }


def reliability(results: Path) -> dict[str, Callable[[], str]]:
    """Parts of docs/reliability.md."""
    return {
        "faults": lambda: faults_part(_read(results, "faults")),
        "kills": lambda: kills_part(_read(results, "kills")),
        "sharding": lambda: sharding_part(_read(results, "sharding")),
    }


def evaluation(results: Path) -> dict[str, Callable[[], str]]:
    """Parts of docs/evaluation.md."""
    return {"evaluation": lambda: evaluation_part(_read(results, "evaluation"))}


def data(results: Path) -> dict[str, Callable[[], str]]:
    """Parts of docs/data.md."""
    return {
        "bench": lambda: data_bench_part(_read(results, "data-bench")),
        "waiting": lambda: data_waiting_part(_read(results, "data-waiting")),
        "scale": lambda: data_scale_part(_read(results, "data-scale")),
        "foreign": lambda: data_foreign_part(_read(results, "data-foreign")),
        "foreign-scale": lambda: foreign_scale_part(_read(results, "data-scale")),
    }


def data_safety(results: Path) -> dict[str, Callable[[], str]]:
    """Parts of docs/data-safety.md."""
    parts = {"limits": limits_part, "hostile": hostile_part, "others": others_part}
    return {
        name: lambda part=part: part(_read(results, "data-safety"))  # type: ignore[misc]
        for name, part in parts.items()
    }


def models(results: Path) -> dict[str, Callable[[], str]]:
    """Parts of docs/models.md."""
    return {
        "import": lambda: import_part(_read(results, "edm-import")),
        "fashion": lambda: proof_part(_read(results, "fashion-mnist")),
        "emoji": lambda: proof_part(_read(results, "emoji32")),
        "kinds": lambda: families_part(_read(results, "families")),
        "latents": lambda: latents_part(_read(results, "latents")),
    }


def stability(results: Path) -> dict[str, Callable[[], str]]:
    """Parts of docs/stability.md."""
    return {
        "tried": lambda: tried_part(_read(results, "fashion-mnist")),
        "tried-emoji": lambda: tried_part(_read(results, "emoji32")),
    }


FASHION_MNIST = ("budget", "freezing", "minima")
"""Experiments that were made on Fashion-MNIST, too."""


def findings(results: Path) -> dict[str, Callable[[], str]]:
    """Parts of docs/findings.md."""
    return {
        name: lambda name=name: findings_part(_read(results / "findings", name))  # type: ignore[misc]
        for name in (*EXPERIMENTS, *(f"fashion-mnist-{name}" for name in FASHION_MNIST))
    }


def training(results: Path) -> dict[str, Callable[[], str]]:
    """Parts of docs/training.md."""
    return {"objectives": lambda: objectives_part(_read(results, "objectives"))}


def multi_node(results: Path) -> dict[str, Callable[[], str]]:
    """Parts of docs/multi-node.md."""
    return {"spanning": lambda: spanning_part(_read(results, "spanning"))}


PAGES = {
    "models.md": models,
    "findings.md": findings,
    "training.md": training,
    "stability.md": stability,
    "multi-node.md": multi_node,
    "evaluation.md": evaluation,
    "performance.md": performance,
    "reliability.md": reliability,
    "data.md": data,
    "data-safety.md": data_safety,
}


def _read(results: Path, name: str) -> Any:
    return json.loads((results / f"{name}.json").read_text())


def rewritten(page: str, parts: Mapping[str, Callable[[], str]]) -> str:
    """The page with every part rewritten; ValueError where the marks of a part are missing."""
    for name, make in parts.items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed):
            raise ValueError(f"the page lacks {begin.strip()} or {end}")
        page = f"{before}{begin}{make()}\n{end}{after}"
    return page


def _gpu_results(results: Path) -> dict[str, Any]:
    """Files of `benchmarks.gpu`, told by their keys; a rehearsal is no result."""
    found = {}
    for path in results.glob("*.json"):
        content = json.loads(path.read_text())
        if isinstance(content, dict) and "rehearsal" in content and not content["rehearsal"]:
            found[path.name] = content
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compare only")
    check = parser.parse_args().check
    stale = 0
    for name, parts in PAGES.items():
        page = (DOCS / name).read_text()
        new = rewritten(page, parts(RESULTS))
        if check and new != page:
            print(f"docs/{name}: run python -m benchmarks.page")
            stale = 1
        elif not check:
            (DOCS / name).write_text(new)
    return stale


if __name__ == "__main__":
    sys.exit(main())
