"""What a user chooses of a source that offers a choice.

chosen = Selection(split="test", label_column="coarse_labels")
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from fasttrain_data.errors import DataError

__all__ = ["NO_LABELS", "UNLABELLED", "Selection", "Unlabelled"]

Unlabelled = Literal["refuse", "skip"]
UNLABELLED: tuple[Unlabelled, ...] = ("refuse", "skip")
NO_LABELS = "none"
"""The label column of those who want one class."""


class Selection(NamedTuple):
    """What to read.

    Attributes:
        split: of sources that come in several; by default `train` where these are other files, and
            all of a folder.
        label_column: the column, attribute or table of labels; `none` for one class.
        labels: a file of labels, where it does not lie beside the images.
        unlabelled: whether an image that a file of labels does not name is an error or left out.
        follow_links: whether symbolic links in a folder are followed wherever they lead.
    """

    split: str | None = None
    label_column: str | None = None
    labels: Path | None = None
    unlabelled: Unlabelled = "refuse"
    follow_links: bool = False

    def check(self) -> None:
        """Raises DataError."""
        if self.unlabelled not in UNLABELLED:
            raise DataError(
                f"--unlabelled is {self.unlabelled}: it must be one of {', '.join(UNLABELLED)}"
            )
        if self.labels is not None and not self.labels.exists():
            raise DataError(f"--labels {self.labels} is not there")
