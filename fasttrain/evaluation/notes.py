"""What is to be known of a result beside its protocol, in sentences for its `note`.

note = noted(unequal_classes(comparison), selected(settings, "best"))    # None: nothing
"""

from __future__ import annotations

from fasttrain.evaluation.comparison import Comparison
from fasttrain.settings import RunSettings

__all__ = ["noted", "selected", "unequal_classes"]

UNEQUAL = 2
"""A largest class this many times the smallest is worth a note; ImageNet's is 1.8 times."""


def noted(*sentences: str | None) -> str | None:
    """The sentences that there are, as one text."""
    return "; ".join(filter(None, sentences)) or None


def unequal_classes(comparison: Comparison) -> str | None:
    """That a conditional model generates equally many images of each class, as published
    evaluations of conditional models do, and the reference has them in other shares."""
    shares = getattr(comparison.reference, "shares", ())
    if not comparison.classes or len(shares) != comparison.classes:
        return None
    if max(shares) <= UNEQUAL * min(shares):
        return None
    return (
        f"equally many images of each class are generated, the reference's classes have "
        f"{100 * min(shares):.2g} to {100 * max(shares):.2g} % of its images, which a perfect "
        f"generator's distances would show, too"
    )


def selected(settings: RunSettings, which: str) -> str | None:
    """That a checkpoint was chosen by the images that it is evaluated with."""
    if which != "best":
        return None
    return (
        f"the checkpoint is the best by {settings.evaluate.metric} on this reference and these "
        f"seeds, so its numbers flatter it; others: --checkpoint best --seeds A-B, or --data"
    )
