"""Pictures for people: from tensors in [-1, 1] to PNG grids.

save_grid(images, Path("grid.png"))        # [64, C, H, W] -> 8 x 8 tiles
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import torch
from einops import rearrange
from PIL import Image

from fasttrain.system.files import write_atomic

__all__ = ["grid_image", "png_bytes", "save_grid", "to_uint8"]


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """[-1, 1] float -> 0..255 uint8, rounded to nearest, any shape."""
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def grid_image(images: torch.Tensor, columns: int | None = None, min_tile: int = 48) -> Image.Image:
    """Tile [N, 1 or 3, H, W] images in [-1, 1] row by row; small ones are enlarged by whole
    factors without smoothing, so that their pixels can be seen."""
    count, channels, height, width = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = torch.full((rows * columns, channels, height, width), 255, dtype=torch.uint8)
    sheet[:count] = to_uint8(images.detach().float().cpu())
    pixels = rearrange(sheet, "(r k) c h w -> (r h) (k w) c", r=rows).numpy()
    picture = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
    factor = max(1, min_tile // height)
    return picture.resize(
        (picture.width * factor, picture.height * factor), Image.Resampling.NEAREST
    )


def png_bytes(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def save_grid(images: torch.Tensor, path: Path, columns: int | None = None) -> None:
    """Write the grid as PNG, completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, png_bytes(grid_image(images, columns)))
