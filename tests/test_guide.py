"""What docs/training.md says of attention follows from the table of measured shapes."""

from __future__ import annotations

import re
from pathlib import Path

from fasttrain_kernels.attention import MEASURED

GUIDE = Path(__file__).parents[1] / "docs" / "training.md"


def test_the_guide_counts_the_shapes_that_run_on_our_attention() -> None:
    text = " ".join(GUIDE.read_text(encoding="utf-8").split())
    said = re.search(r"Attention is PyTorch's .*? which holds (\d+) shapes?\)", text)
    assert said, "docs/training.md no longer says when attention runs on our kernel"
    assert int(said[1]) == len(MEASURED)
