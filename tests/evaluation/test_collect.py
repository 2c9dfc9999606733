"""Which features are kept where there are more images than metrics can compare."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fasttrain.evaluation.collect import KEPT, collect, parts_of
from fasttrain.evaluation.protocol import protocol_of
from fasttrain.system.processes import World

CPU = torch.device("cpu")


class Itself:
    """Features: the image's number."""

    width, classes = 1, 0

    def __call__(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def kept(world: World, count: int, keep: int) -> Tensor:
    batches = (
        (part, torch.arange(part.start, part.stop).view(-1, 1, 1, 1).float())
        for part in parts_of(count, 32, world)
    )
    extractor: Any = Itself()
    found = collect(batches, extractor, count=count, keep=keep, world=world, moments=False)
    assert found.features is not None
    return found.features.flatten().long()


def test_those_that_are_kept_are_of_all_classes() -> None:
    """Classes come in turn: every second of 4,000 images would be of 5 classes of 10."""
    numbers = kept(World(0, 1, CPU), 4000, 2000)
    assert len(set(numbers.tolist())) == 2000
    assert torch.bincount(numbers % 10).min() > 150
    assert torch.equal(numbers, kept(World(0, 1, CPU), 4000, 2000))
    assert torch.equal(kept(World(0, 1, CPU), 40, 50), torch.arange(40))


def test_results_of_more_images_than_are_kept_have_a_code_of_their_own() -> None:
    def about(count: int) -> dict[str, Any]:
        reference = {"data": "x", "images": count, "size": 8, "resized": False, "content": "1"}
        return protocol_of({"extractor": "lite2"}, reference, images=100, components=64)

    assert "kept" not in about(KEPT)
    assert about(KEPT + 1)["kept"] == "at random"
