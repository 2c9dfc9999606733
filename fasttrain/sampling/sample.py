"""`fasttrain sample`: images of given seeds from a run or a model file, as a grid or single files.

    sample_model(Path("runs/digits-d2o-f"), "grid.png", Wanted(seeds="0-63"))
    sample_model(Path("generator.safetensors"), "grid.png", Wanted(grid="classes", seeds="0-7"))
    sample_model(Path("runs/digits-d2o-f"), "strip.png", Wanted(interpolate="3,14"))
    sample_model(Path("runs/digits-d2o-f"), "images/", Wanted(seeds="0-999", classes="7"))

Seed s has the same latents in every model, and class s modulo the number of classes by default. An
image is a function of its seed and class; its batch changes only the rounding of its last bits.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fasttrain.models.load import load_model
from fasttrain.models.precision import Precision, compute_in, faster
from fasttrain.sampling.generate import Tile, draw
from fasttrain.sampling.pictures import grid_image, png_bytes, save_grid
from fasttrain.sampling.sampler import Sampler
from fasttrain.sampling.seeds import MOST, parse_seeds
from fasttrain.settings.mistakes import did_you_mean
from fasttrain.system.errors import UserError
from fasttrain.system.files import probe, write_atomic
from fasttrain_kernels import using

__all__ = ["Wanted", "class_numbers", "sample_model"]

BETWEEN = 8
"""Images between the ends of a strip."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """The images to generate, as a user writes them.

    Attributes:
        seeds: 0-63 or 1,5,8-11; default: 0-63, 0-7 for a grid of classes.
        classes: a number or a name; several for a grid of classes, by default all.
        grid: `classes`: a row for each class, with the same seeds.
        interpolate: two seeds, A,B: a strip from one to the other with `between` images between
            (8).
        steps: Heun steps of a diffusion model, 18 by default; 1 is one step from the highest noise.
        churn: EDM's S_churn of those steps, or S_churn,S_min,S_max,S_noise; none by default.
        precision: what the network computes in: float32, bfloat16, or auto, the faster one here.
        which: checkpoint of a run.
        vae: the autoencoder of a model of latents; default: the run's.
    """

    seeds: str | None = None
    classes: str | None = None
    grid: Literal["classes"] | None = None
    interpolate: str | None = None
    between: int | None = None
    steps: int | None = None
    churn: str | None = None
    batch: int = 256
    precision: Precision = "float32"
    which: str = "latest"
    vae: Path | None = None


def sample_model(model: Path, out: str, wanted: Wanted) -> Path:
    """Write the grid, or, where `out` is a folder or ends in a slash, a PNG file for each image;
    return its path. Raises UserError for mistakes in the input."""
    _check_name(out)
    network, info = load_model(model, wanted.which, wanted.vae)
    sampler = Sampler.of(info, wanted.steps, wanted.churn)
    tiles, columns = tiles_of(wanted, info.network.label_dim, info.classes)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    compute_in(network.to(device), faster(wanted.precision, device))
    with using(info.kernels):
        return _write(draw(sampler, network, tiles, wanted.batch), out, tiles, columns)


def _check_name(out: str) -> None:
    """PNG alone keeps an image exactly, and a file says what it is. It must be writable, which is
    tried before anything is generated."""
    if not out:
        raise UserError("--out is empty: name a PNG, or a folder with a slash at its end")
    path = Path(out)
    if _is_folder(out):
        probe(path / "image.png")
    elif path.suffix.lower() != ".png":
        raise UserError(
            f"--out {out}: images are written as PNG: name it {path.with_suffix('.png')}, or "
            f"{out.rstrip('/')}/ for a folder of files"
        )
    else:
        probe(path)


def _is_folder(out: str) -> bool:
    return out.endswith(("/", os.sep)) or Path(out).is_dir()


def _write(drawn: Iterator[Tensor], out: str, tiles: Sequence[Tile], columns: int | None) -> Path:
    path = Path(out)
    if not _is_folder(out):
        save_grid(torch.cat(list(drawn)), path, columns)
        return path
    path.mkdir(parents=True, exist_ok=True)
    names = iter(tiles)
    for images in drawn:
        for image in images.split(1):
            picture = grid_image(image, 1, min_tile=1)
            write_atomic(path / f"{next(names).name}.png", png_bytes(picture))
    return path


def tiles_of(
    wanted: Wanted, label_dim: int, names: Sequence[str] = ()
) -> tuple[list[Tile], int | None]:
    """The images to generate, row by row, and the number in a row (None: nearly square).

    names: of the classes, where they are known.
    """
    labels = _labels(wanted, label_dim, names)
    if wanted.interpolate is not None:
        strip = _strip(wanted, label_dim, labels)
        return strip, len(strip)
    if wanted.between is not None:
        raise UserError(
            f"--steps-between {wanted.between}: it is of the strip of --interpolate A,B: name its "
            f"two seeds"
        )
    usual = "0-7" if wanted.grid else "0-63"
    seeds = parse_seeds(usual if wanted.seeds is None else wanted.seeds)
    count = len(seeds) * (len(labels) if wanted.grid else 1)
    if count > MOST:
        raise UserError(f"{count:,} images are requested: {MOST:,} at most")
    if wanted.grid == "classes":
        tiles = [
            Tile(f"class{label:03d}-{seed:06d}", seed, seed, label=label)
            for label in labels
            for seed in seeds
        ]
        return tiles, len(seeds)
    each = max(1, label_dim)
    tiles = [
        Tile(f"{seed:06d}", seed, seed, label=labels[0] if labels else seed % each)
        for seed in seeds
    ]
    return tiles, None


def _labels(wanted: Wanted, label_dim: int, names: Sequence[str]) -> list[int]:
    """The requested classes; default: all for a grid of classes, else none."""
    if wanted.grid == "classes" and wanted.interpolate is not None:
        raise UserError("--grid classes and --interpolate are different pictures: choose one")
    if label_dim == 0 and (wanted.classes is not None or wanted.grid == "classes"):
        what = "--grid classes" if wanted.classes is None else f"--class {wanted.classes}"
        raise UserError(f"{what}: the network is unconditional")
    if wanted.classes is None:
        return list(range(label_dim)) if wanted.grid == "classes" else []
    labels = class_numbers(wanted.classes, names, label_dim)
    if wanted.grid is None and len(labels) > 1:
        raise UserError(f"--class {wanted.classes}: name one class, or add --grid classes")
    return labels


def class_numbers(text: str, names: Sequence[str], label_dim: int) -> list[int]:
    """Numbers of classes from numbers or names; a name may be anything, and goes before numbers.

    Raises UserError for a class that a network with `label_dim` classes does not have.
    """
    if text in names:
        return [names.index(text)]
    parts = [part.strip() for part in text.split(",")]
    labels: list[int] = []
    for part in parts:
        if part in names:
            labels.append(names.index(part))
        elif names and not part[:1].isdigit():
            some = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            hint = did_you_mean(part, names) or f": the classes are {some}"
            raise UserError(f"--class {text}: no class {part!r}{hint}")
        elif not part[:1].isdigit():
            raise UserError(f"--class {text}: this model has no names of its classes: give numbers")
        else:
            labels += parse_seeds(part, "--class")
    if max(labels) >= label_dim:
        raise UserError(f"--class {text}: the network has classes 0 to {label_dim - 1}")
    return labels


def _strip(wanted: Wanted, label_dim: int, labels: Sequence[int]) -> list[Tile]:
    assert wanted.interpolate is not None
    ends = parse_seeds(wanted.interpolate, "--interpolate")
    if len(ends) != 2 or ends[0] == ends[1]:
        raise UserError(f"--interpolate {wanted.interpolate!r}: name two different seeds, as 3,14")
    if wanted.seeds is not None:
        raise UserError("--interpolate names its own seeds: leave --seeds out")
    between = BETWEEN if wanted.between is None else wanted.between
    if between + 2 > MOST:
        raise UserError(f"--steps-between {between}: {MOST - 2:,} at most")
    first, second = ends
    label = labels[0] if labels else first % max(1, label_dim)
    last = between + 1
    return [
        Tile(f"{first:06d}-{second:06d}-{k:03d}", first, second, k / last, label)
        for k in range(last + 1)
    ]
