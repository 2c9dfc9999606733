"""`fasttrain evaluate MODEL --data REF`: a model against a reference, over all processes.

Images are generated, processed and dropped: only the result is written, unless the images are
requested. The result has its protocol and the metrics' intervals.

    request = Request(data="data/photos", extractor="inception", samples=50_000)
    result = evaluate_model(Path("generator.safetensors"), request, start())
    print(text(result))

    reference_stats("data/photos", Path("photos.npz"), request, start())    # once, for many models
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from fasttrain.evaluation.comparison import Comparison
from fasttrain.evaluation.extractors import check_extractor, load_extractor
from fasttrain.evaluation.metrics.statistics import Statistics, save_statistics
from fasttrain.evaluation.notes import unequal_classes
from fasttrain.evaluation.reference import is_statistics, open_images
from fasttrain.evaluation.request import (
    Request,
    check_counts,
    check_size,
    components_of,
    metrics_of,
    reference_of,
    seeds_of,
)
from fasttrain.evaluation.result import result_of, row_of, write_result
from fasttrain.evaluation.watch import Watch
from fasttrain.models.load import load_model
from fasttrain.models.precision import compute_in, faster
from fasttrain.sampling.generate import check_shown
from fasttrain.sampling.pictures import png_bytes, to_uint8
from fasttrain.sampling.sampler import Sampler
from fasttrain.system.errors import UserError
from fasttrain.system.files import probe
from fasttrain.system.processes import World
from fasttrain_kernels import using

__all__ = ["evaluate_model", "reference_stats"]


def evaluate_model(
    model: Path,
    request: Request,
    world: World,
    show: Callable[[Mapping[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Evaluate, write the result and return it with its `path`, on every process.

    show: is given the result, with its path, on rank 0, before it is written.

    Raises UserError and DataError for mistakes in the input.
    """
    began = time.monotonic()
    folder_of = model if (model / "config.yaml").is_file() else model.parent
    first = request.out or folder_of / "evaluation.json"
    world.on_main(lambda: probe(first))
    with world.agreed():
        check_extractor(request.extractor, request.weights)
        network, info = load_model(model, request.checkpoint, request.vae)
        check_shown(network)
        sampler = Sampler.of(info, request.steps, request.churn)
        extractor = load_extractor(request.extractor, weights=request.weights)
        reference = reference_of(info, request, extractor)
        check_size(reference.protocol, info, network)
        metrics = metrics_of(request, reference, extractor)
        seeds = seeds_of(request, reference.protocol)
        about = reference.protocol
        components, lines = components_of(request, info, about, extractor)
        lines = lines if "fd" in metrics else []
        lines += check_counts(metrics, len(seeds), about, extractor, components)
        network.to(world.device)
    for warned in lines:
        if world.is_main:
            warnings.warn(warned, stacklevel=2)
    folder = request.save_images
    if folder is not None:
        world.on_main(lambda: empty_folder(folder))
    dtype = world.on_main(lambda: faster(request.precision, world.device))
    compute_in(network, dtype)

    def seen(own: Sequence[int], images: Tensor) -> None:
        if folder is not None:
            write_images(folder, own, images)

    with using(info.kernels), Watch(world) as watch:
        comparison = Comparison(
            reference=reference,
            load=lambda: extractor,
            seeds=seeds,
            metrics=metrics,
            components=components,
            classes=info.network.label_dim,
            batch=request.batch,
            world=world,
            phase=watch.phase,
        )
        how = sampler.detail if dtype == "float32" else f"{sampler.detail}, {dtype}"
        row = row_of(comparison(sampler, network, seen=seen), info.name, how, network)
    result = result_of(
        {"model": row}, comparison, info, began=began, seeds=request.seeds, network=network
    )
    if (note := unequal_classes(comparison)) is not None:
        result["note"] = note
    path = request.out or beside(model, result)
    world.on_main(lambda: show({**result, "path": str(path)}))
    world.on_main(lambda: write_result(path, result))
    return {**result, "path": str(path)}


def reference_stats(data: str, out: Path, request: Request, world: World) -> dict[str, Any]:
    """Write the statistics of all images of `data` to `out`; returns their protocol, on every
    process. Uses extractor, weights, resolution and batch of `request`."""
    if not is_statistics(out):
        raise UserError(f"--out {out}: statistics are an .npz file, use that ending")
    world.on_main(lambda: probe(out))
    with world.agreed():
        check_extractor(request.extractor, request.weights)
        images = open_images(data, request.resolution)
    with Watch(world) as watch:
        comparison = Comparison(
            reference=images,
            load=lambda: load_extractor(request.extractor, weights=request.weights),
            batch=request.batch,
            world=world,
            phase=watch.phase,
        )
        statistics = comparison.real.statistics
    assert statistics is not None
    protocol = {"extractor": comparison.extractor.protocol, "reference": images.protocol}
    kept = Statistics(statistics.mu, statistics.sigma, statistics.images, protocol)
    world.on_main(lambda: save_statistics(out, kept))
    return protocol


def empty_folder(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty: name a new folder for the images")
    folder.mkdir(parents=True, exist_ok=True)


def write_images(folder: Path, seeds: Sequence[int], images: Tensor) -> None:
    """Write images as PNG files, each named after its seed."""
    for seed, pixels in zip(seeds, to_uint8(images).permute(0, 2, 3, 1).numpy(), strict=True):
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        (folder / f"{seed:010d}.png").write_bytes(png_bytes(picture))


def beside(model: Path, result: Mapping[str, Any]) -> Path:
    """Path of a result: in the run directory, or beside the model's file; one for each protocol and
    each set of images."""
    protocol, row, about = result["protocol"], result["rows"]["model"], result["model"]
    made = [row["weights"], row["sampler"], about["seeds"], about["classes"]]
    made += [about["vae"]] if "vae" in about else []
    code = hashlib.sha256(json.dumps(made).encode()).hexdigest()[:8]
    name = f"evaluation-{protocol['extractor']['extractor']}-{protocol['code']}-{code}.json"
    inside, model = (model / "config.yaml").is_file(), model.absolute()  # also "."
    return model / name if inside else model.with_name(f"{model.stem}.{name}")
