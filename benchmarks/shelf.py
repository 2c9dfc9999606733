"""Put a run's model on the shelf (`fasttrain models`), with its numbers and its card.

    python -m benchmarks.shelf fashion-mnist-edm runs/fashion-mnist-edm --licence MIT
    python -m benchmarks.shelf fashion-mnist runs/fashion-mnist-d2o-f --rest fashion-mnist-edm \\
        --licence MIT
    python -m benchmarks.shelf --reference fashion-mnist data/fashion-mnist

The numbers are those of the weights as they are stored, in bfloat16. `--reference` writes the real
images' Gaussian on 64 principal components, which the test of the shelf compares with: it needs no
data set, and no more than the first 160 images of each model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fasttrain.checkpoints.saved import SavedRun
from fasttrain.evaluation.extractors import extract, load_extractor
from fasttrain.evaluation.measure import evaluate_model
from fasttrain.evaluation.metrics.distances import leading_components
from fasttrain.evaluation.reference import open_images
from fasttrain.evaluation.request import Request
from fasttrain.evaluation.result import text
from fasttrain.models.export.card import Quality, model_card
from fasttrain.models.files.model_file import ModelInfo
from fasttrain.models.files.shelf import describe, path_of, put_on_shelf, read_shelf
from fasttrain.sampling.sampler import Sampler
from fasttrain.system.files import write_atomic
from fasttrain.system.processes import ONE_PROCESS
from tests.shelf import DISTANCES, REFERENCES, checked_distance


def write_reference(name: str, data: Path) -> None:
    """The Gaussian of a set's images on its 64 leading principal components, as an .npz file."""
    extractor = load_extractor("lite2")
    images = open_images(str(data))
    parts = [range(n, min(n + 256, images.count)) for n in range(0, images.count, 256)]
    features = extract(extractor, (pixels for _, pixels in images.batches(parts))).double()
    centre = features.mean(0)
    centred = features - centre
    axes = leading_components(centred.T @ centred, 64)
    projected = centred @ axes
    sigma = projected.T @ projected / (len(projected) - 1)
    REFERENCES.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        REFERENCES / f"{name}.npz",
        centre=centre.float().numpy(),
        axes=axes.to(torch.float16).numpy(),
        sigma=sigma.float().numpy(),
    )


def stock(arguments: argparse.Namespace) -> str:
    """Store the model, evaluate it as it is stored, and write both into its file and its card."""
    saved = SavedRun.open(arguments.model, arguments.checkpoint)
    info = ModelInfo.of(saved)
    metadata = {**info.metadata(), **saved.origin, "base_licence": arguments.licence}

    def store(numbers: dict[str, Any]) -> Path:
        return put_on_shelf(arguments.name, saved.weights, metadata, numbers, arguments.rest)

    store({})
    with tempfile.TemporaryDirectory() as folder:
        request = Request(
            data=saved.settings.data.path,
            samples=arguments.samples,
            metrics=("fd",),  # the others take minutes with a reference of this size
            out=Path(folder) / "result",
        )
        result = evaluate_model(Path(arguments.name), request, ONE_PROCESS)
    row = result["rows"]["model"]
    numbers: dict[str, Any] = {
        metric: round(estimate["value"], 5) for metric, estimate in row["metrics"].items()
    }
    numbers |= {
        "evaluations": Sampler.of(info).evaluations,
        "samples": arguments.samples,
        "protocol": result["protocol"]["code"],
        "images": saved.images,
        "reference": arguments.reference_name,
    }
    path = store(numbers)
    check(arguments.name)
    file = read_shelf(arguments.name)
    assert file.info is not None
    lines = [line for line in text(result).splitlines() if not line.startswith("saved: ")]
    info = replace(file.info, name=arguments.name)
    numbers_text = "\n".join(f"    {line}" for line in lines)
    card = model_card(info, metadata, "safetensors", arguments.name, Quality(numbers_text))
    write_atomic(path.with_suffix(".md"), card)
    return f"{path_of(arguments.name)}: {path.stat().st_size / 1e6:.2f} MB, {numbers}"


def check(name: str) -> None:
    """Write the distance that the test finds again."""
    reference = REFERENCES / f"{describe(name).numbers['reference']}.npz"
    distances = json.loads(DISTANCES.read_text()) if DISTANCES.exists() else {}
    distances[name] = round(checked_distance(read_shelf(name), reference), 3)
    write_atomic(DISTANCES, json.dumps(distances, indent=1, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("model", type=Path, help="run directory; with --reference, a shard set")
    parser.add_argument("--reference", action="store_true", help="write the reference of the test")
    parser.add_argument("--reference-name", default="fashion-mnist")
    parser.add_argument("--rest", help="the model of the shelf that has the frozen weights")
    parser.add_argument("--licence")
    parser.add_argument("--checkpoint", default="latest")
    parser.add_argument("--samples", type=int, default=2000)
    arguments = parser.parse_args()
    if arguments.reference:
        write_reference(arguments.name, arguments.model)
    else:
        print(stock(arguments))


if __name__ == "__main__":
    main()
