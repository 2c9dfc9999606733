"""A request for an evaluation, and checks that it is possible.

request = Request(data="data/photos", extractor="inception", samples=50_000)
reference = reference_of(info, request, extractor)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fasttrain.data import storage_of
from fasttrain.evaluation.extractors import Extractor
from fasttrain.evaluation.metrics.neighbours import NEIGHBOURS
from fasttrain.evaluation.protocol import METRICS, PAIRED
from fasttrain.evaluation.reference import (
    ImageSet,
    Known,
    is_statistics,
    known_statistics,
    open_images,
)
from fasttrain.models.files.model_file import ModelInfo
from fasttrain.models.precision import Precision
from fasttrain.sampling.seeds import parse_seeds
from fasttrain.settings.registry import EXTRACTORS
from fasttrain.system.errors import UserError
from fasttrain_data.fetching import is_url
from fasttrain_data.tars import holds_tars

__all__ = [
    "Request",
    "check_counts",
    "check_size",
    "components_of",
    "metrics_of",
    "reference_of",
    "seeds_of",
]

SAMPLES = 50_000


@dataclass(frozen=True, kw_only=True)
class Request:
    """Options of an evaluation.

    Attributes:
        data: a shard set, a folder or another collection of images, or an .npz of statistics;
            default: the run's own data set.
        extractor: a name of the registry, such as `lite2` or `inception`.
        weights: the extractor's file or its folder, where it needs one.
        samples: generated images, with the seeds from 0 on; default: as many as the reference has,
            50,000 at most.
        seeds: `0-49999`, instead of samples.
        steps: Heun steps of a diffusion model; 1: one step.
        churn: EDM's S_churn of those steps, or S_churn,S_min,S_max,S_noise.
        metrics: names of `METRICS`; default: all that the reference and the extractor allow.
        resolution: pixels a side to resize the reference's images to.
        batch: images that are generated and processed at once.
        precision: what the model computes in: float32, bfloat16, or auto, the faster one here.
        checkpoint: checkpoint of a run.
        vae: the autoencoder of a model of latents; default: the run's.
        save_images: folder for the generated images, new or empty.
        trust_urls: open the URL of the data that the run names.
        out: the file of the result.
    """

    data: str | None = None
    extractor: str = "lite2"
    weights: Path | None = None
    samples: int | None = None
    seeds: str | None = None
    steps: int | None = None
    churn: str | None = None
    metrics: tuple[str, ...] | None = None
    resolution: int | None = None
    batch: int = 64
    precision: Precision = "float32"
    checkpoint: str = "latest"
    vae: Path | None = None
    save_images: Path | None = None
    trust_urls: bool = False
    out: Path | None = None


def reference_of(info: ModelInfo, request: Request, extractor: Extractor) -> ImageSet | Known:
    """The reference's images, or statistics of them."""
    data: Any = request.data
    if data is None:
        if info.settings is None:
            raise UserError(
                f"{info.name} does not record its training data: name a reference with "
                f"--data, a shard set, a folder of images or an .npz file of statistics"
            )
        settings = info.settings
        pictures = settings.pictures
        data = pictures.path
        if pictures.mix or is_url(data) or holds_tars(data):
            network = settings.network if settings.latents is None else None
            data = storage_of(pictures, network, trust_urls=request.trust_urls)
    elif is_statistics(data):
        if request.resolution is not None:
            raise UserError(
                f"--resolution {request.resolution}: {data} holds statistics, not images to "
                f"resize: give it to `fasttrain reference-stats`, or name the images with --data"
            )
        return known_statistics(Path(data), extractor)
    return open_images(data, request.resolution)


def metrics_of(request: Request, reference: ImageSet | Known, extractor: Extractor) -> list[str]:
    """The metrics to compute. Raises UserError for impossible ones."""
    reasons = {}
    if extractor.components is None:
        reasons["fd_full"] = f"with {request.extractor} `fd` already uses all dimensions"
    if not extractor.classes:
        known = " or ".join(name for name, entry in EXTRACTORS.items() if entry.classifies)
        reasons["is"] = f"only the extractor {known} classifies"
    if isinstance(reference, Known):
        why = "it needs the reference's images: name them with --data"
        reasons |= dict.fromkeys(PAIRED, why)
    if request.metrics is None:
        return [name for name in METRICS if name not in reasons]
    for name in request.metrics:
        if name not in METRICS:
            raise UserError(f"--metrics {name}: choose from {', '.join(METRICS)}")
        if name in reasons:
            raise UserError(f"--metrics {name}: {reasons[name]}")
    return [name for name in METRICS if name in request.metrics]


def check_size(reference: Mapping[str, Any], info: ModelInfo, network: Any) -> None:
    """Raise UserError if the reference's images have another size than the model's."""
    size, expected = reference["size"], info.network.img_resolution
    if network.decoder is not None:
        expected *= network.decoder.factor
    if size is not None and size != expected:
        raise UserError(
            f"the reference's images are {size}x{size} and {info.name} generates "
            f"{expected}x{expected}, which cannot be compared: resize them with --resolution "
            f"{expected}"
        )


def seeds_of(request: Request, reference: Mapping[str, Any]) -> list[int]:
    """The seeds of the images to generate."""
    if request.seeds is None:
        seeds = list(range(request.samples or min(SAMPLES, reference["images"] or SAMPLES)))
    elif request.samples is not None:
        raise UserError("--samples and --seeds exclude each other: set one of them")
    else:
        seeds = parse_seeds(request.seeds)
    if len(seeds) < 2:
        raise UserError(f"{len(seeds)} image has no distribution: use two or more")
    if len(set(seeds)) < len(seeds):
        raise UserError(
            f"--seeds {request.seeds}: a seed occurs twice, and would be the same image; name each "
            f"once"
        )
    return seeds


def components_of(
    request: Request, info: ModelInfo, reference: Mapping[str, Any], extractor: Extractor
) -> tuple[int | None, list[str]]:
    """Leading components that `fd` uses, None for all dimensions, and a line when these are fewer
    than wanted: a reference of N images spans N - 1. On a run's own data with its extractor they
    are the run's."""
    wanted, images = extractor.components, reference["images"]
    own = None if info.settings is None or request.data else info.settings.evaluate
    if wanted is not None and own is not None and own.extractor == request.extractor:
        wanted = own.components
    if wanted is None or images is None or images > wanted or images < 2:
        return wanted, []
    fewer = images - 1
    return fewer, [
        f"fd uses {fewer} leading components instead of {wanted}, because the reference has "
        f"{images} images: for the usual {wanted} use more images"
    ]


def check_counts(
    metrics: Sequence[str],
    generated: int,
    reference: Mapping[str, Any],
    extractor: Extractor,
    components: int | None,
) -> list[str]:
    """Check, before any image is generated, that there are enough for the metrics; returns
    warnings. Raises UserError."""
    warned = []
    counts = {"generated": generated, "real": reference["images"]}  # None: not recorded
    for kind, images in counts.items():
        if images is None:
            continue
        if images < 2:
            raise UserError(f"{images} {kind} image has no distribution: use two or more")
        if {"precision", "recall"} & set(metrics) and images <= NEIGHBOURS:
            raise UserError(
                f"{images} {kind} images: precision and recall use {NEIGHBOURS} neighbours of "
                f"each, use more images, or name other --metrics"
            )
        wanted = {"fd": components or extractor.width, "fd_full": extractor.width}
        for name in [name for name in wanted if name in metrics and images <= wanted[name]]:
            warned.append(
                f"{name} compares {wanted[name]:,} dimensions, which {images:,} {kind} images do "
                f"not span, which increases the distance: use more images"
            )
    return warned
