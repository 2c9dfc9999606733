"""The distance of a model of the shelf to its real images, without these: to their Gaussian on 64
principal components, which `python -m benchmarks.shelf --reference` wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fasttrain.evaluation.extractors import extract, load_extractor
from fasttrain.evaluation.metrics.distances import frechet_from_statistics
from fasttrain.models.files.model_file import ModelFile
from fasttrain.models.load import load_model
from fasttrain.sampling.generate import Tile, draw
from fasttrain.sampling.sampler import Sampler

CHECKED = 160
"""Images of a model that are compared: a teacher makes eight a second of them."""
REFERENCES = Path(__file__).parent / "goldens" / "shelf"
DISTANCES = REFERENCES / "distances.json"


def checked_distance(model: ModelFile, reference: Path) -> float:
    """Frechet distance of a model's first `CHECKED` images to a reference of `write_reference`."""
    network, info = load_model(model)
    tiles = [Tile(str(seed), seed, seed, label=seed % 10) for seed in range(CHECKED)]
    images = draw(Sampler.of(info), network, tiles, batch=100)
    found: dict[str, Tensor] = {
        name: torch.from_numpy(value).double() for name, value in np.load(reference).items()
    }
    features = extract(load_extractor("lite2"), images).double()
    projected = (features - found["centre"]) @ found["axes"]
    mean = projected.mean(0)
    sigma = (projected - mean).T @ (projected - mean) / (len(projected) - 1)
    return frechet_from_statistics(torch.zeros(64).double(), found["sigma"], mean, sigma)
