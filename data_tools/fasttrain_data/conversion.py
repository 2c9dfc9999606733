"""From a source of images to a shard set: shuffle, decode, write, and let it appear whole.

    index = convert("digits", "data/digits")
    index = convert("photos", "data/photos64", resolution=64, max_bad=10)

The same source and options give the same records in the same order with the same pixels, and the
same bytes with the same versions of Pillow and zlib.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor

from fasttrain_data.errors import DataError
from fasttrain_data.images import BadImage
from fasttrain_data.index import ClassInfo, Index, ShardInfo, load_index
from fasttrain_data.permutation import SHARD_WRITER, permutation
from fasttrain_data.sources import FolderSource, Layout, Source, open_source
from fasttrain_data.writer import ShardSetWriter, is_replaceable

__all__ = ["Conversion", "convert", "run_conversion"]

# Called with what is being done, how many items are done, and how many there are.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Conversion:
    """The outcome: the index, whether the set was already there, and the files left out."""

    index: Index
    already_there: bool
    bad_files: tuple[tuple[str, str], ...] = ()


class _BadFiles:
    """Counts what is left out, and stops when it is more than the user allowed."""

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self.files: list[tuple[str, str]] = []

    def __call__(self, name: str, reason: str) -> None:
        self.files.append((name, reason))
        if len(self.files) > self.allowed:
            first, why = self.files[0]
            raise DataError(
                f"{first}: {why} ({len(self.files)} bad files, {self.allowed} allowed: "
                "remove it, or allow more with --max-bad N)"
            )


def convert(
    source: str | Path,
    out: str | Path,
    *,
    images_per_shard: int | None = None,
    seed: int = 0,
    resolution: int | None = None,
    channels: Literal[1, 3] | None = None,
    background: str = "white",
    max_bad: int = 0,
    force: bool = False,
) -> Index:
    """Write the images of `source` as a shard set at `out` and return its index.

    Args:
        source: "digits", or a folder with a subfolder a class.
        out: the folder to make. A set made from the same source and options is kept as it is.
        images_per_shard: at most so many a shard (shards differ by one image at most, files that
            turn out bad aside); by default 128 for digits, else 1000.
        seed: of the shuffle before images are dealt to shards.
        resolution: crop to a centred square and resize to this many pixels a side; without it all
            images must be square and of one size.
        channels: 1 grey, 3 colour; by default grey when every image is.
        background: the colour that shows through transparent pixels, as in HTML.
        max_bad: so many unreadable files are left out; one more is an error.
        force: replace another shard set at `out`.

    Raises:
        DataError: one line naming the file and the remedy: bad images, no write access, full disk.
            Nothing is left at `out` then.
    """
    return run_conversion(
        source,
        out,
        images_per_shard=images_per_shard,
        seed=seed,
        resolution=resolution,
        channels=channels,
        background=background,
        max_bad=max_bad,
        force=force,
    ).index


def run_conversion(
    source: str | Path,
    out: str | Path,
    *,
    images_per_shard: int | None = None,
    seed: int = 0,
    resolution: int | None = None,
    channels: int | None = None,
    background: str = "white",
    max_bad: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """As `convert`, with a progress callback and the list of files that were left out."""
    out = Path(out)
    opened = open_source(source)
    per_shard = opened.images_per_shard if images_per_shard is None else images_per_shard
    options = {
        "images_per_shard": per_shard,
        "seed": seed,
        "resolution": resolution,
        "channels": channels,
        "background": background,
    }
    _check_options(options, max_bad)
    if isinstance(opened, FolderSource) and out.resolve().is_relative_to(opened.root):
        raise DataError(f"{out} is inside the folder of images: choose another place")
    existing = _existing(out, opened, options, force)
    if existing is not None:
        return Conversion(existing, already_there=True)

    bad = _BadFiles(max_bad)
    report: Progress = progress or (lambda *_: None)
    with warnings.catch_warnings():
        # Pillow warns of large images on its own terms; here they are refused or accepted.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        layout = opened.layout(
            resolution, channels, bad, lambda done, total: report("reading headers", done, total)
        )
        try:
            index = _write(opened, layout, out, options, bad, force, report)
        except OSError as error:  # of writing only: a file that cannot be read is a bad file
            raise DataError(f"cannot write {out}: {error.strerror or error}") from error
    return Conversion(index, already_there=False, bad_files=tuple(bad.files))


def _check_options(options: dict[str, Any], max_bad: int) -> None:
    for name, value, least in (
        ("images-per-shard", options["images_per_shard"], 1),
        ("seed", options["seed"], 0),
        ("max-bad", max_bad, 0),
    ):
        if value < least:
            raise DataError(f"--{name} is {value}: it must be at least {least}")
    resolution = options["resolution"]
    if resolution is not None and not 1 <= resolution <= 8192:
        raise DataError(f"--resolution is {resolution}: it must be 1 to 8192")
    if options["channels"] not in (None, 1, 3):
        raise DataError(f"--channels is {options['channels']}: it must be 1 or 3")
    _color(options["background"])


def _color(name: str) -> tuple[int, int, int]:
    try:
        red, green, blue = ImageColor.getrgb(name)[:3]
    except ValueError as error:
        raise DataError(f"--background {name!r} is not a colour: use a name or #rrggbb") from error
    return red, green, blue


def _existing(out: Path, source: Source, options: dict[str, Any], force: bool) -> Index | None:
    """Return the set at `out` when it is the wanted one; raise when `out` may not be written."""
    if not out.exists() and not out.is_symlink():
        return None
    if not out.is_dir():
        raise DataError(f"{out} exists and is not a folder: choose another place")
    if not any(out.iterdir()):
        return None
    if not is_replaceable(out):
        raise DataError(f"{out} exists and is not a shard set: choose another folder")
    if force:
        return None
    try:
        index = load_index(out)
        index.check_files(out)
    except DataError as error:
        raise DataError(f"{error}; or replace it with --force") from error
    if (index.source, index.options) != (source.identity, options):
        raise DataError(
            f"{out} holds shards of another source or other options: "
            "choose another folder, or replace it with --force"
        )
    return index


def _write(
    source: Source,
    layout: Layout,
    out: Path,
    options: dict[str, Any],
    bad: _BadFiles,
    force: bool,
    report: Progress,
) -> Index:
    order = permutation(len(layout.items), SHARD_WRITER, options["seed"])
    shards = -(-len(order) // options["images_per_shard"])
    images = Counter[int]()
    done = 0
    with ShardSetWriter(out, resolution=layout.resolution, channels=layout.channels) as writer:
        for places in np.array_split(order, shards):
            for place in places:
                report("writing shards", done, len(order))
                item = layout.items[int(place)]
                # A key is the place in the shuffled order, also when an earlier file was bad.
                key, done = f"{done:09d}", done + 1
                try:
                    pixels = _read(source, item, layout, options)
                except BadImage as error:
                    bad(source.name(item), str(error))
                    continue
                writer.add(key, pixels, source.labels[item])
                images[source.labels[item]] += 1
            writer.end_shard()
        if not writer.shards:
            raise DataError(f"no readable images for {out}")
        report("writing shards", done, len(order))

        def make_index(content_sha256: str, infos: list[ShardInfo]) -> Index:
            return Index(
                format_version=1,
                resolution=layout.resolution,
                channels=1 if layout.channels == 1 else 3,
                classes=tuple(
                    ClassInfo(name=name, images=images[label])
                    for label, name in enumerate(source.classes)
                ),
                images=images.total(),
                shards=tuple(infos),
                content_sha256=content_sha256,
                source=source.identity,
                options=options,
                skipped=dict(sorted(Counter(reason for _, reason in bad.files).items())),
            )

        return writer.commit(make_index, force=force)


def _read(
    source: Source, item: int, layout: Layout, options: dict[str, Any]
) -> npt.NDArray[np.uint8]:
    pixels = source.read(
        item, layout, options["resolution"] is not None, _color(options["background"])
    )
    expected = (layout.resolution, layout.resolution, layout.channels)
    if pixels.shape != expected:
        raise BadImage("size differs from its header")
    return pixels
