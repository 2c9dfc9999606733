"""Material for tests of latents: an autoencoder, and pictures that tell which class they are of.

convert(squares(folder, 32, 16), out)
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tests.model_goldens import folder

__all__ = ["VAE", "squares"]

VAE = folder() / "diffusers-vae"
"""4 channels, sides halved once, random weights: they show the way, not pictures."""


def squares(root: Path, count: int, side: int) -> Path:
    """A folder of two classes of images: a bright square to the left, or to the right."""
    draws = np.random.default_rng(0)
    for number in range(count):
        label = number % 2
        pixels = draws.integers(0, 80, (side, side, 3), np.uint8)
        pixels[side // 4 : side // 2, (label * side) // 2 :][:, : side // 2] += 150
        place = root / ("left", "right")[label] / f"{number:03d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place)
    return root
