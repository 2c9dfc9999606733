"""The same seeds and classes side by side: real images, the diffusion model, the generator.

    layout = Layout.of(settings.network)
    pictures = compare(run, settings)          # each a PNG, or a note that says what is missing

Rows go by class, so that a place in one grid has the class, and in the generated ones the seed, of
the same place in the others.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from fasttrain.data import ImageStream, storage_of
from fasttrain.errors import UserError
from fasttrain.files import read_bytes
from fasttrain.generation import generate
from fasttrain.models import load_run, network_of, weights_of
from fasttrain.pictures import grid_image, png_bytes
from fasttrain.sampling import heun_sampler, one_step
from fasttrain.settings import FinetuneSettings, NetworkSettings, RunSettings
from fasttrain_data import DataError
from fasttrain_kernels import using

__all__ = ["Layout", "Picture", "compare", "data_uri", "progress", "real_images", "spaced"]

TEACHER_STEPS = 18
TILE = 96
"""Images smaller than this are enlarged to it, by whole factors, so that their pixels are seen."""
STRIP = 6
"""Grids at most in the progress strip."""
MOST_PIXELS = 1 << 25
"""Of a strip's picture as it was drawn; larger ones are left out."""
STRIP_SIDE = 512
"""Longer sides of a strip's picture are scaled down to this many pixels."""


@dataclass(frozen=True)
class Layout:
    """How many images of which classes, and how they are tiled."""

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
        """Row by row. Seed s has class s modulo label_dim, as everywhere."""
        step = max(1, self.label_dim)
        return [c + step * k for c in range(self.classes) for k in range(self.per_class)]


@dataclass(frozen=True)
class Picture:
    """One picture of the page, or what to do to get it."""

    name: str
    """Its colour too."""
    title: str
    detail: str
    uri: str = ""
    size: tuple[int, int] = (0, 0)
    missing: str = ""


def compare(run: Path, settings: RunSettings, trust_urls: bool = False) -> list[Picture]:
    """The grids of a run: four of a fine-tuning run, three of a pre-training run.

    trust_urls: open the URL of the data that the run names.

    A grid that cannot be made (its data or its base model has gone) holds the reason instead.
    """
    layout = Layout.of(settings.network)

    def reals() -> torch.Tensor:
        return real_images(settings, layout, trust_urls)

    evaluations = f"{2 * TEACHER_STEPS - 1} evaluations"

    def before() -> torch.Tensor:
        assert isinstance(settings, FinetuneSettings)
        network = network_of("one_step", settings, weights_of(settings.init), settings.init)
        return generate(settings.steps(), network, layout.seeds)

    def teacher() -> torch.Tensor:
        if isinstance(settings, FinetuneSettings):
            network = network_of("edm", settings, weights_of(settings.init), settings.init)
        else:
            network, _ = load_run(run)
        return generate(heun_sampler, network, layout.seeds, num_steps=TEACHER_STEPS)

    def after() -> torch.Tensor:
        network, _ = load_run(run)
        steps = settings.steps() if isinstance(settings, FinetuneSettings) else one_step
        return generate(steps, network, layout.seeds)

    real = ("real_floor", "Real images", "the same classes", reals)
    heun = ("teacher_18", "Diffusion model", f"{TEACHER_STEPS} Heun steps, {evaluations}", teacher)
    if isinstance(settings, FinetuneSettings):
        steps, calls = "One step", "1 evaluation"
        if settings.sigma_mid is not None:
            steps, calls = "Two steps", "2 evaluations"
        start = ("one_step_before", f"{steps}, before", f"{calls}, not yet fine-tuned", before)
        made = ("one_step_after", f"{steps}, after", f"{calls}, fine-tuned", after)
        wanted = [real, start, heun, made]
    else:
        wanted = [real, heun, ("one_step", "One step", "1 evaluation, for comparison", after)]
    with using(settings.kernels):
        return [_picture(*each, columns=layout.columns) for each in wanted]


def _picture(
    name: str, title: str, detail: str, draw: Callable[[], torch.Tensor], *, columns: int
) -> Picture:
    try:
        grid = spaced(grid_image(draw(), columns, TILE), columns)
    except (UserError, DataError) as error:
        return Picture(name, title, detail, missing=str(error))
    return Picture(name, title, detail, data_uri(png_bytes(grid)), grid.size)


def spaced(grid: Image.Image, columns: int) -> Image.Image:
    """A grid of square tiles with transparent gaps between them, for pages light and dark."""
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
    in [-1, 1]. White where a class has too few.

    Raises UserError or DataError when the data set is not there or not trusted.
    """
    network = settings.network
    stream = ImageStream(
        storage_of(settings.data, trust_urls=trust_urls),
        batch=1,
        streams=1,
        seed=0,
        resolution=network.img_resolution,
        channels=network.img_channels,
        label_dim=network.label_dim,
        max_skipped=settings.data.max_skipped,
        reader_timeout=settings.data.reader_timeout,
    )
    shape = (network.img_channels, network.img_resolution, network.img_resolution)
    images = torch.ones(layout.classes, layout.per_class, *shape)
    found = [0] * layout.classes
    for _ in range(stream.manifest.images):
        one = next(stream).to("cpu")
        label = 0 if one.class_labels is None else int(one.class_labels.argmax())
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
            continue  # a damaged picture is no reason to have no report
        picture.thumbnail((STRIP_SIDE, STRIP_SIDE))
        title = f"{int(path.stem):,} images"
        yield Picture("strip", title, "", data_uri(png_bytes(picture)), picture.size)


def data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
