"""The paper's experiments on the digits as they stand in docs/findings.md.

    fasttrain pretrain digits-edm
    fasttrain analyze all
    python -m benchmarks.findings findings
    python -m benchmarks.page

Keeps each result of `fasttrain analyze` as `benchmarks/results/findings/NAME.json`, without what
`tables` and `curves` hold anyway, and their page as `docs/findings/index.html`. `--of SET` keeps
those of another set of images, as many as there are, as `SET-NAME.json`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.demo import machine
from fasttrain.analysis.findings.page import EXPERIMENTS

__all__ = ["findings_part"]

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "findings"
PAGE = ROOT / "docs" / "findings" / "index.html"


def findings_part(result: Mapping[str, Any]) -> str:
    """A section of docs/findings.md."""
    about = result["about"]
    seeds = "one seed" if about["seeds"] == 1 else f"{about['seeds']} seeds"
    lines = [
        f"The paper: {result['claim']}",
        "",
        f"**Found: {result['found']}**",
    ]
    for table in result["tables"]:
        lines += ["", f"| {' | '.join(table['columns'])} |", "|---" * len(table["columns"]) + "|"]
        lines += [f"| {' | '.join(row)} |" for row in table["rows"]]
    lines += ["", f"How: {result['protocol']} {seeds.capitalize()}; `{about['recipe']}`."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="what `fasttrain analyze --out` wrote to")
    parser.add_argument("--of", help="the set, if not the digits")
    options = parser.parse_args()
    folder, of = options.folder, options.of
    prefix = f"{of}-" if of else ""
    RESULTS.mkdir(exist_ok=True)
    for name in EXPERIMENTS:
        if of and not (folder / f"{name}.json").exists():
            continue
        result = json.loads((folder / f"{name}.json").read_text())
        kept = {key: value for key, value in result.items() if key != "data"}
        text = json.dumps({"machine": machine(), **kept}, indent=1)
        (RESULTS / f"{prefix}{name}.json").write_text(text + "\n")
    if of:
        return
    PAGE.parent.mkdir(exist_ok=True)
    shutil.copyfile(folder / "findings.html", PAGE)


if __name__ == "__main__":
    main()
