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


def squares(root: Path, count: int, side: int, classes: int = 2) -> Path:
    """A folder of classes of images: a bright square from the left side to the right one."""
    draws = np.random.default_rng(0)
    for number in range(count):
        label = number % classes
        pixels = draws.integers(0, 80, (side, side, 3), np.uint8)
        pixels[side // 4 : side // 2, label * side // classes :][:, : side // 2] += 150
        place = root / f"class{label}" / f"{number:03d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place)
    return root
