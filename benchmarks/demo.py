"""The demo over several seeds: `benchmarks/results/demo.json` and the README's picture.

    python -m benchmarks.demo --out /tmp/demos 0 1 2

Each seed runs `fasttrain demo` into OUT/SEED (a finished one is taken as it is), so the numbers are
those of `summary.json`, with the machine that they were made on.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import platform
from pathlib import Path

import torch
from PIL import Image

from fasttrain.analysis.report.grids import compare
from fasttrain.checkpoints.saved import SavedRun
from fasttrain.cli.demo import run_demo
from fasttrain.sampling.pictures import png_bytes

HERE = Path(__file__).parent


def machine() -> dict[str, object]:
    """What the numbers were made on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    return {"cpu": cpu, "cores": os.cpu_count(), "torch": torch.__version__}


def picture(run: SavedRun) -> Image.Image:
    """The report's grids in one row."""
    pages = compare(run)
    grids = [Image.open(io.BytesIO(base64.b64decode(p.uri.split(",", 1)[1]))) for p in pages]
    gap = 16
    width = sum(grid.width for grid in grids) + gap * (len(grids) - 1)
    sheet = Image.new("RGB", (width, max(grid.height for grid in grids)), "white")
    left = 0
    for grid in grids:
        sheet.paste(grid.convert("RGB"), (left, 0), grid.getchannel("A"))
        left += grid.width + gap
    if grey := run.settings.network.img_channels == 1:
        sheet = sheet.convert("L")
    size = (960, round(sheet.height * 960 / sheet.width))
    sheet = sheet.resize(size, Image.Resampling.LANCZOS)
    return sheet if grey else sheet.quantize(256)  # a third of the bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows = []
    for seed in arguments.seeds:
        summary = arguments.out / str(seed) / "summary.json"
        if not summary.is_file():
            run_demo(summary.parent, seed)
        rows.append(json.loads(summary.read_text()))
    result = {"machine": machine(), "runs": rows}
    (HERE / "results" / "demo.json").write_text(json.dumps(result, indent=1) + "\n")
    first = arguments.out / str(arguments.seeds[0]) / "digits-d2o-f"
    (HERE.parent / "docs" / "demo.png").write_bytes(png_bytes(picture(SavedRun.open(first))))


if __name__ == "__main__":
    main()
