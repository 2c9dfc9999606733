"""The picture of a published model: what its first seeds look like.

png = preview_png(network, info)
"""

from __future__ import annotations

from typing import Any

from fasttrain.models.files.model_file import ModelInfo
from fasttrain.sampling.generate import generate
from fasttrain.sampling.pictures import grid_image, png_bytes
from fasttrain.sampling.sampler import Sampler
from fasttrain_kernels import using

__all__ = ["preview_png"]

ROWS, LARGE_ROWS = 6, 3
"""Of images up to 64 pixels, and of larger ones."""
COLUMNS = 8
"""Where the classes are not the columns: too many, or none."""


def preview_png(network: Any, info: ModelInfo) -> bytes:
    """PNG of the first seeds of a model, from seed 0 on; a column for each class of up to 16."""
    classes = info.network.label_dim
    columns = classes if 2 <= classes <= 2 * COLUMNS else COLUMNS
    rows = ROWS if info.network.img_resolution <= 64 else LARGE_ROWS
    with using(info.kernels):
        images = generate(Sampler.of(info), network, range(rows * columns))
    return png_bytes(grid_image(images, columns))
