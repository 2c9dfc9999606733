"""Draws of latents: by the image's index alone, with the moments that are stored."""

from __future__ import annotations

import torch

from fasttrain.data import Batch
from fasttrain.models.files.families.foreign import Latents
from fasttrain.training.latents import drawn
from fasttrain_data.index import LatentInfo


def info(flips: bool) -> LatentInfo:
    said = {"scale": 1.0, "shift": 0.0, "low": -1, "flips": flips, "resolution": 8, "colours": 3}
    return LatentInfo.model_validate(said | {"vae_sha256": "0" * 64})


def batch(first: int, count: int, flips: bool) -> Batch:
    """Means of 3 (of mirror images -3) in both channels, deviations of 0.5 and 2."""
    one = torch.tensor([3.0, 3, 0.5, 2, -3, -3, 0.5, 2][: 8 if flips else 4])
    images = one[:, None, None].expand(count, -1, 4, 4).half()
    return Batch(images, None, torch.arange(first, first + count))


def test_the_draws_have_the_stored_moments_and_the_networks_scale() -> None:
    how = Latents((2.0, 0.5), (1.0, -1.0))
    made = drawn(batch(0, 4000, False), info(False), how, seed=3).images
    assert made.dtype == torch.float32
    means, deviations = made.mean((0, 2, 3)), made.std((0, 2, 3))
    torch.testing.assert_close(means, torch.tensor([3.0 * 2 + 1, 3 * 0.5 - 1]), rtol=0.02, atol=0)
    torch.testing.assert_close(deviations, torch.tensor([0.5 * 2, 2 * 0.5]), rtol=0.02, atol=0)


def test_a_draw_is_a_function_of_the_images_index() -> None:
    how = Latents((1.0, 1.0), (0.0, 0.0))
    whole = drawn(batch(0, 16, True), info(True), how, seed=1).images
    part = drawn(batch(8, 8, True), info(True), how, seed=1).images
    assert torch.equal(whole[8:], part)
    assert not torch.equal(whole, drawn(batch(0, 16, True), info(True), how, seed=2).images)


def test_half_of_the_images_are_mirrored() -> None:
    how = Latents((1.0, 1.0), (0.0, 0.0))
    made = drawn(batch(0, 2000, True), info(True), how, seed=0).images[:, 0]
    sides = made.mean((1, 2)).sign()
    assert abs(float(sides.mean())) < 0.07
    torch.testing.assert_close(made.mean((1, 2)).abs().mean(), torch.tensor(3.0), rtol=0.02, atol=0)
