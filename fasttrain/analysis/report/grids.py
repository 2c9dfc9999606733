"""The same seeds and classes side by side: real images, the diffusion model, the generator.

    layout = Layout.of(settings.network)
    pictures = compare(SavedRun.open(run))     # each a PNG, or a note about the missing part

Each row has one class, so that equal positions in the grids have the same class and, in the
generated ones, the same seed.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from fasttrain.checkpoints.saved import SavedRun
from fasttrain.data import RealImages
from fasttrain.evaluation.summary import Row, rows_of
from fasttrain.sampling.generate import generate
from fasttrain.sampling.pictures import grid_image, png_bytes
from fasttrain.settings import NetworkSettings, RunSettings
from fasttrain.system.errors import UserError
from fasttrain.system.files import read_bytes
from fasttrain_data import DataError
from fasttrain_kernels import using

__all__ = ["Layout", "Picture", "compare", "data_uri", "newest_grid", "picture_of", "progress"]
__all__ += ["real_images", "spaced"]

TILE = 96
"""Smaller images are enlarged to this size, by whole factors, so that their pixels are visible."""
STRIP = 6
"""Largest number of grids in the progress strip."""
MOST_PIXELS = 1 << 25
"""Largest original size of a strip's picture; larger ones are dropped."""
STRIP_SIDE = 512
"""Longer sides of a strip's picture are scaled down to this many pixels."""


@dataclass(frozen=True)
class Layout:
    """Number of images of each class, and their tiling."""

    classes: int
    per_class: int
    columns: int
    label_dim: int

    @classmethod
    def of(cls, network: NetworkSettings) -> Layout:
        """About 50 images of up to ten classes; 16 of up to four where images are large."""
        small = network.img_resolution <= 64
        columns, total, most = (5, 40, 10) if small else (4, 16, 4)
        classes = min(max(1, network.label_dim), most)
        rows = math.ceil(total / (columns * classes))
        return cls(classes, rows * columns, columns, network.label_dim)

    @property
    def seeds(self) -> list[int]:
        """Seeds row by row. Seed s has class s modulo label_dim, as everywhere."""
        step = max(1, self.label_dim)
        return [c + step * k for c in range(self.classes) for k in range(self.per_class)]


@dataclass(frozen=True)
class Picture:
    """One picture of the page, or instructions to get it."""

    name: str
    """Name of the row, and of its colour."""
    title: str
    detail: str
    uri: str = ""
    size: tuple[int, int] = (0, 0)
    missing: str = ""


def compare(saved: SavedRun, trust_urls: bool = False) -> list[Picture]:
    """The grids of a run, one for each row of its table, of the evaluated models.

    trust_urls: open the URL of the data that the run names.

    A grid that cannot be drawn (its data or its base model is missing) holds the reason instead.
    """
    settings = saved.settings
    layout = Layout.of(settings.network)
    with using(settings.kernels):
        return [picture_of(row, saved, layout, trust_urls) for row in rows_of(settings)]


def picture_of(row: Row, saved: SavedRun, layout: Layout, trust_urls: bool = False) -> Picture:
    """The grid of one row, or the reason why it cannot be drawn; inside of `using`."""
    title, detail = "Real images", "the same classes"
    if row.sampler is not None:
        title, detail = row.short[0].upper() + row.short[1:], row.sampler.detail
    try:
        if row.sampler is None:
            images = real_images(saved.settings, layout, trust_urls)
        else:
            images = generate(row.sampler, row.network(saved), layout.seeds)
        grid = spaced(grid_image(images, layout.columns, TILE), layout.columns)
    except (UserError, DataError) as error:
        return Picture(row.name, title, detail, missing=str(error))
    return Picture(row.name, title, detail, data_uri(png_bytes(grid)), grid.size)


def spaced(grid: Image.Image, columns: int) -> Image.Image:
    """A grid of square tiles with transparent gaps between them, for light and dark pages."""
    side = grid.width // columns
    step = side + max(2, side // 16)
    sheet = Image.new(
        "LA" if grid.mode == "L" else "RGBA",
        (columns * step - (step - side), grid.height // side * step - (step - side)),
    )
    for top in range(grid.height // side):
        for left in range(columns):
            box = (left * side, top * side, (left + 1) * side, (top + 1) * side)
            sheet.paste(grid.crop(box).convert(sheet.mode), (left * step, top * step))
    return sheet


def real_images(settings: RunSettings, layout: Layout, trust_urls: bool = False) -> torch.Tensor:
    """The first images of each class in the data set's seeded order, [classes * per_class, C, H, W]
    in [-1, 1], filled with white where a class has too few.

    Raises UserError or DataError when the data set is missing or not trusted.
    """
    stream = RealImages.of_run(settings, compared=True, trust_urls=trust_urls)
    images = torch.ones(layout.classes, layout.per_class, *stream.index.shape)
    found = [0] * layout.classes
    for _ in range(stream.index.images):
        one = stream.take(1).to("cpu")
        labels = one.class_labels if layout.label_dim else None
        label = 0 if labels is None else int(labels.argmax())
        if label < layout.classes and found[label] < layout.per_class:
            images[label, found[label]] = one.images[0]
            found[label] += 1
            if sum(found) == layout.classes * layout.per_class:
                break
    return images.flatten(0, 1)


def progress(run: Path) -> list[Picture]:
    """Some of the grids that training drew, first and last included, scaled down when large."""
    paths = sorted(path for path in (run / "samples").glob("*.png") if path.stem.isdecimal())
    return list(_strip(paths))


def newest_grid(run: Path) -> Picture | None:
    """The newest of these grids that can be read; None before the first."""
    paths = sorted(path for path in (run / "samples").glob("*.png") if path.stem.isdecimal())
    return next((drawn for path in reversed(paths[-3:]) for drawn in _strip([path])), None)


def _strip(paths: list[Path]) -> Iterator[Picture]:
    count = min(STRIP, len(paths))
    places = {round(i * (len(paths) - 1) / max(1, count - 1)) for i in range(count)}
    for path in (paths[place] for place in sorted(places)):
        try:
            with Image.open(io.BytesIO(read_bytes(path)), formats=["PNG"]) as file:
                if file.width * file.height > MOST_PIXELS:
                    continue
                picture = file.convert(file.mode)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            continue  # a damaged picture must not prevent the report
        picture.thumbnail((STRIP_SIDE, STRIP_SIDE))
        title = f"{int(path.stem):,} images"
        yield Picture("strip", title, "", data_uri(png_bytes(picture)), picture.size)


def data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
