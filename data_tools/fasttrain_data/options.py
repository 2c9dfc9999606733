"""What decides the records of a conversion.

Options(resolution=64, crop="center", record="raw").check()
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from PIL import ImageColor

from fasttrain_data.errors import DataError
from fasttrain_data.images import CROPS, Crop, Wanted
from fasttrain_data.records import RECORDS, Format
from fasttrain_data.sources.selection import Unlabelled

__all__ = ["Options"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What decides the records of a conversion; it goes into the index.

    Attributes:
        images_per_shard: largest number in a shard (shards differ by one image at most, files that
            turn out bad aside); by default 128 for digits, else 1000.
        seed: of the shuffle before images are dealt to shards.
        resolution: pixels a side; without it all images must be square and of one size.
        channels: 1 grey, 3 colour; by default grey when every image is.
        crop: how an image becomes a square of that size: `center`, `adm`, `none`; see `Wanted`.
        background: the colour that shows through transparent pixels, as in HTML.
        record: what images are stored as: `png`, `webp` (lossless), `raw` (chunks of uint8).
        split: of sources that come in several; see `Selection`.
        label_column: the column, attribute or table of labels; see `Selection`.
        labels: a file of labels that lies elsewhere; see `Selection`.
        unlabelled: what becomes of images without a label; see `Selection`.
        follow_links: whether symbolic links in a folder are followed; see `Selection`.
        class_names: in label order; classes of these names get their numbers, others these names.
        label_field, image_key: of WebDataset's tars; see `samples.Fields`.
    """

    images_per_shard: int | None = None
    seed: int = 0
    resolution: int | None = None
    channels: int | None = None
    crop: Crop = "center"
    background: str = "white"
    record: Format = "png"
    split: str | None = None
    label_column: str | None = None
    labels: str | None = None
    unlabelled: Unlabelled = "refuse"
    follow_links: bool = False
    class_names: list[str] | None = None
    label_field: str | None = None
    image_key: str | None = None

    def recorded(self) -> dict[str, Any]:
        """What an index keeps of them: no path, `train` where the split was left open, as sets of
        older versions have it, and `follow_links` only where it was asked for, for the same
        reason."""
        labels = self.labels and os.path.basename(os.path.normpath(self.labels))
        kept = {**asdict(self), "split": self.split or "train", "labels": labels}
        return kept if self.follow_links else {k: v for k, v in kept.items() if k != "follow_links"}

    def check(self) -> None:
        """Raises DataError."""
        for name, value, least in (
            ("images-per-shard", self.images_per_shard, 1),
            ("seed", self.seed, 0),
        ):
            if value is not None and value < least:
                raise DataError(f"--{name} is {value}: it must be at least {least}")
        if self.resolution is not None and not 1 <= self.resolution <= 8192:
            raise DataError(f"--resolution is {self.resolution}: it must be 1 to 8192")
        if self.channels not in (None, 1, 3):
            raise DataError(f"--channels is {self.channels}: it must be 1 or 3")
        for name, chosen, known in (("crop", self.crop, CROPS), ("record", self.record, RECORDS)):
            if chosen not in known:
                raise DataError(f"--{name} is {chosen}: it must be one of {', '.join(known)}")
        self.wanted(1)

    def wanted(self, channels: int) -> Wanted:
        """What each image is made into. Raises DataError for a background that is not a colour."""
        try:
            red, green, blue = ImageColor.getrgb(self.background)[:3]
        except ValueError as error:
            raise DataError(
                f"--background {self.background!r} is not a colour: use a name or #rrggbb"
            ) from error
        return Wanted(
            channels=channels,
            resolution=self.resolution,
            crop=self.crop,
            background=(red, green, blue),
        )
