"""Where in the network frequencies are made: spectra of every block over noise levels, of the
diffusion model and of the one-step generator, and of their samples."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fasttrain.analysis.findings.lab import Lab
from fasttrain.analysis.findings.result import Curve, HeatMap, Result
from fasttrain.analysis.findings.spectra import block_spectra, mean_frequency, radial_power
from fasttrain.data import RealImages
from fasttrain.models.load import load_model
from fasttrain.sampling.draws import sample_latents
from fasttrain.sampling.generate import generate
from fasttrain.sampling.sampler import Sampler

__all__ = ["block_frequencies", "experiment"]

LEVELS = (80.0, 20.0, 5.0, 1.5, 0.5, 0.1, 0.02)
IMAGES = 256


def experiment(lab: Lab) -> Result:
    """The base model and one fine-tuning of it."""
    real = RealImages.of(lab.data).take(IMAGES).to("cpu")
    tuned, info = load_model(lab.tuned("d2o-f", 0, "freeze=1"))
    models = {"diffusion model": lab.teacher(), "one-step generator": tuned}
    maps, data = [], {}
    for name, network in models.items():
        found = block_frequencies(network, real.images, real.class_labels)
        data[name] = found
        for what in ("output", "change"):
            rows = list(found[what])
            values = [found[what][row] for row in rows]
            columns = [f"{level:g}" for level in LEVELS]
            maps.append(HeatMap(f"{name}: {what} of each block", rows, columns, values))
    samples = {
        "real images": real.images,
        "diffusion model, 18 Heun steps": _samples(models["diffusion model"], Sampler("heun")),
        "one-step generator": _samples(tuned, Sampler.of(info)),
    }
    spectra = {name: radial_power(images).tolist() for name, images in samples.items()}
    means = {name: mean_frequency(torch.tensor(power)) for name, power in spectra.items()}
    return Result(
        name="frequency",
        title="Where frequencies are made",
        claim="Blocks of the U-Net work on different frequencies at different noise levels.",
        found=(
            f"{moved(data['diffusion model']['change'])}; samples of the one-step generator have "
            f"the mean frequency {means['one-step generator']:.2f}, of the diffusion model "
            f"{means['diffusion model, 18 Heun steps']:.2f}, real images "
            f"{means['real images']:.2f} cycles an image."
        ),
        protocol=(
            f"{IMAGES} real images with noise of each level go through the network once; radial "
            "power spectra of each block's output and of its output less its input; shown is the "
            "mean frequency without the constant part, in cycles a map. Blocks that change the "
            "shape have no change."
        ),
        about=lab.about(),
        data={"blocks": data, "samples": spectra},
        curves=[
            Curve(
                "power of samples over frequency",
                {name: _points(power) for name, power in spectra.items()},
                across="cycles an image",
            )
        ],
        maps=maps,
    )


def block_frequencies(
    network: Any, images: Tensor, class_labels: Tensor | None
) -> dict[str, dict[str, list[float | None]]]:
    """Mean frequency of each block's `output` and `change` at each of `LEVELS`."""
    index = torch.arange(len(images))
    noise = sample_latents(index, images.shape[1:])
    found: dict[str, dict[str, list[float | None]]] = {"output": {}, "change": {}}
    for level in LEVELS:
        x = images + level * noise
        rows = block_spectra(network, partial(network, x, level, class_labels))
        for row in rows:
            frequency = mean_frequency(row.output)
            found["output"].setdefault(row.name, []).append(frequency)
            change = None if row.change is None else mean_frequency(row.change)
            found["change"].setdefault(row.name, []).append(change)
    kept = {name: row for name, row in found["change"].items() if row[0] is not None}
    return {"output": found["output"], "change": kept}


def moved(change: dict[str, list[float | None]]) -> str:
    """In words: how the frequency of what blocks change goes with the noise level, from the
    highest level to the lowest."""
    pairs = [(row[0], row[-1]) for row in change.values()]
    rising = sum(low > high for high, low in pairs if high is not None and low is not None)
    return (
        f"in {rising} of {len(pairs)} blocks that keep the shape, what the diffusion model changes "
        f"has a higher mean frequency at the lowest noise level than at the highest"
    )


def _points(power: list[float]) -> list[tuple[float, float]]:
    """(frequency, power), without the constant part."""
    return [(float(k), value) for k, value in enumerate(power)][1:]


def _samples(network: Any, sampler: Sampler) -> Tensor:
    return generate(sampler, network, range(IMAGES)).float()
