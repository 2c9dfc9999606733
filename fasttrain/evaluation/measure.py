"""`fasttrain evaluate MODEL --data REF`: a model's numbers against a reference, over all processes.

Images are generated, looked at and forgotten: nothing but the result is written, unless the images
are asked for. The result says by which protocol it was made, and how sure the numbers are.

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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from fasttrain import __version__
from fasttrain.checkpoint import write_atomic
from fasttrain.distributed import World
from fasttrain.errors import UserError
from fasttrain.evaluation.collect import KEPT, Collected, collect, parts_of
from fasttrain.evaluation.distances import leading_components
from fasttrain.evaluation.extractors import COMPONENTS, Extractor, check_extractor, load_extractor
from fasttrain.evaluation.neighbours import precision_recall
from fasttrain.evaluation.protocol import METRICS, UNREADABLE, protocol_of
from fasttrain.evaluation.reference import ImageSet, Known, is_statistics, open_images
from fasttrain.evaluation.request import (
    PAIRED,
    Request,
    balanced,
    check_counts,
    check_size,
    metrics_of,
    reference_of,
    seeds_of,
    steps_of,
)
from fasttrain.evaluation.resampling import (
    Estimate,
    frechet_estimate,
    kernel_estimate,
    share_estimate,
)
from fasttrain.evaluation.statistics import Statistics, save_statistics
from fasttrain.evaluation.watch import Watch
from fasttrain.files import read_json
from fasttrain.generation import generate
from fasttrain.models import load_model
from fasttrain.pictures import png_bytes, to_uint8
from fasttrain.samples import sampler_of
from fasttrain_kernels import using

__all__ = ["evaluate_model", "reference_stats"]

MADE = ("weights", "sampler", "seeds", "classes")
"""What a result's images depend on."""


def evaluate_model(model: Path, request: Request, world: World) -> dict[str, Any]:
    """Measure, write the result and return it with its `path`, on every process.

    Raises UserError and DataError for what the user can mend.
    """
    began = time.monotonic()
    check_extractor(request.extractor, request.weights)
    network, info = load_model(model, request.checkpoint)
    sampler = sampler_of(info, request.steps)
    extractor = load_extractor(request.extractor, weights=request.weights).to(world.device)
    reference = reference_of(info, request, extractor)
    check_size(reference.protocol, info)
    metrics = metrics_of(request, reference)
    seeds = seeds_of(request, reference.protocol)
    for warned in check_counts(metrics, len(seeds), reference.protocol, extractor):
        if world.is_main:
            warnings.warn(warned, stacklevel=2)
    folder = request.save_images
    if folder is not None:
        world.on_main(lambda: empty_folder(folder))
    network.to(world.device)

    def images_of(part: range) -> Tensor:
        own = seeds[part.start : part.stop]
        images = generate(sampler, network, own, batch=len(own))
        if folder is not None:
            write_images(folder, own, images)
        return images

    with using(info.kernels), Watch(world) as watch:
        keep = KEPT if set(metrics) & set(PAIRED) else 0
        real = look_at(reference, extractor, keep, request.batch, world, watch)
        parts = parts_of(len(seeds), request.batch, world)
        fake = collect(
            ((part, images_of(part)) for part in parts),
            extractor,
            count=len(seeds),
            keep=KEPT,
            world=world,
            classify="is" in metrics,
            advance=watch.phase("generated images", sum(map(len, parts))),
        )
        components = COMPONENTS[request.extractor]
        found = numbers(real, fake, metrics, components, world, watch)

    classes = info.network.label_dim
    protocol = protocol_of(
        extractor.protocol,
        reference.protocol,
        images=len(seeds),
        components=components,
        balanced=balanced(seeds, classes),
    )
    result = {
        "metrics": {name: asdict(estimate) for name, estimate in found.items()},
        "protocol": protocol,
        "model": {
            "name": info.name,
            "weights": hash_of(network),
            "images_seen": info.images,
            "sampler": steps_of(info, request.steps),
            "seeds": request.seeds or f"0-{len(seeds) - 1}",
            "classes": "in turn by seed" if classes else None,
        },
        "made": {
            "fasttrain": __version__,
            "torch": torch.__version__,
            "device": device_name(world.device),
            "processes": world.size,
            "batch": request.batch,
            "seconds": round(time.monotonic() - began, 1),
        },
    }
    path = request.out or beside(model, result)
    world.on_main(lambda: write_result(path, result))
    return {**result, "path": str(path)}


def reference_stats(data: str, out: Path, request: Request, world: World) -> dict[str, Any]:
    """Write the statistics of all images of `data` to `out`; returns their protocol, on every
    process. Of `request`, extractor, weights, resolution and batch count."""
    if not is_statistics(out):
        raise UserError(f"--out {out}: statistics go into an .npz file, give it that ending")
    check_extractor(request.extractor, request.weights)
    images = open_images(data, request.resolution)
    extractor = load_extractor(request.extractor, weights=request.weights).to(world.device)
    with Watch(world) as watch:
        found = look_at(images, extractor, 0, request.batch, world, watch).statistics
    protocol = {"extractor": extractor.protocol, "reference": images.protocol}
    kept = Statistics(found.mu, found.sigma, found.images, protocol)
    world.on_main(lambda: save_statistics(out, kept))
    return protocol


def look_at(
    reference: ImageSet | Known,
    extractor: Extractor,
    keep: int,
    batch: int,
    world: World,
    watch: Watch,
) -> Collected:
    """The reference's statistics, and so many features of its images."""
    if isinstance(reference, Known):
        return Collected(reference.statistics.to(world.device), None, None)
    parts = parts_of(reference.count, batch, world)
    found = collect(
        reference.batches(parts),
        extractor,
        count=reference.count,
        keep=keep,
        world=world,
        advance=watch.phase("reference images", sum(map(len, parts))),
    )
    reference.seal(world)
    return found


def numbers(
    real: Collected,
    fake: Collected,
    metrics: Sequence[str],
    components: int | None,
    world: World,
    watch: Watch,
) -> dict[str, Estimate]:
    """The metrics asked for, the same on every process."""
    found: dict[str, Estimate] = {}
    for name, part in (("fd", components), ("fd_full", None)):
        if name in metrics:
            watch.phase(name)
            found[name] = frechet(real, fake, part, world)
    if real.features is not None and fake.features is not None:
        if "kd" in metrics:
            watch.phase("kd")
            found["kd"] = kernel_estimate(real.features, fake.features, world)
        if {"precision", "recall"} & set(metrics):
            rows = (len(real.features) + 2 * len(fake.features)) // world.size
            advance = watch.phase("precision and recall", rows)
            shares = precision_recall(real.features, fake.features, world=world, advance=advance)
            found["precision"] = share_estimate(shares["precision"], len(fake.features))
            found["recall"] = Estimate(shares["recall"], why="not worked out for recall")
    if fake.score is not None:
        found["is"] = fake.score
    return {name: found[name] for name in metrics}


def frechet(real: Collected, fake: Collected, components: int | None, world: World) -> Estimate:
    """The Frechet distance, on the reference's leading components if so many are given."""
    reference, made, features = real.statistics, fake.statistics, fake.complete
    if components is not None:
        axes = leading_components(reference.sigma, components)
        reference, made = projected(reference, axes), projected(made, axes)
        features = None if features is None else features.to(axes) @ axes
    return frechet_estimate(reference, made, features, world)


def projected(statistics: Statistics, axes: Tensor) -> Statistics:
    mu, sigma = statistics.mu @ axes, axes.T @ statistics.sigma @ axes
    return Statistics(mu, (sigma + sigma.T) / 2, statistics.images)


def hash_of(network: nn.Module) -> str:
    """The first digits of a SHA-256 over all weights: which model a number is of."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def empty_folder(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} holds something already: name a new folder for the images")
    folder.mkdir(parents=True, exist_ok=True)


def write_images(folder: Path, seeds: Sequence[int], images: Tensor) -> None:
    """As PNG, each named after its seed."""
    for seed, pixels in zip(seeds, to_uint8(images).permute(0, 2, 3, 1).numpy(), strict=True):
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        (folder / f"{seed:010d}.png").write_bytes(png_bytes(picture))


def beside(model: Path, result: Mapping[str, Any]) -> Path:
    """Where a result goes: into the run directory, or beside the file; one for each protocol and
    each way that the images were made."""
    protocol, made = result["protocol"], [result["model"][key] for key in MADE]
    code = hashlib.sha256(json.dumps(made).encode()).hexdigest()[:8]
    name = f"evaluation-{protocol['extractor']['extractor']}-{protocol['code']}-{code}.json"
    return model / name if model.is_dir() else model.with_name(f"{model.stem}.{name}")


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write it, with the other metrics of the same images that the file holds already."""
    known: dict[str, Any] = {}
    with suppress(*UNREADABLE):
        kept = read_json(path)
        alike = all(kept["model"][key] == result["model"][key] for key in MADE)
        if alike and kept["protocol"]["code"] == result["protocol"]["code"]:
            known = dict(kept["metrics"])
    known |= result["metrics"]
    metrics = {name: known[name] for name in METRICS if name in known}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps({**result, "metrics": metrics}, indent=1))


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
