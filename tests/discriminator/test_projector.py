"""The projector against its formula as written, and its weights against their seed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain.discriminator import Projector
from fasttrain.system.errors import UserError

CHANNELS = (3, 5, 6, 9)


def feature_maps(size: int = 16, count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [
        torch.randn(2, CHANNELS[i], size >> i, size >> i, generator=generator, dtype=torch.float64)
        for i in range(count)
    ]


def mixed_as_written(projector: Projector, maps: list[Tensor]) -> list[Tensor]:
    """The paper's order: mix channels, add, upsample, then the 1x1 convolution."""
    weights = projector.state_dict()
    outputs: list[Tensor] = []
    for i in reversed(range(len(maps))):
        layer = f"layer{i}"
        h = F.conv2d(maps[i], weights[f"{layer}_ccm.weight"], weights[f"{layer}_ccm.bias"])
        if outputs:
            h = h + outputs[-1]
        h = F.interpolate(h, scale_factor=2, mode="bilinear", align_corners=True)
        name = f"{layer}_csm.out_conv"
        outputs.append(F.conv2d(h, weights[f"{name}.weight"], weights[f"{name}.bias"]))
    return outputs[::-1]


@pytest.mark.parametrize("expand", [True, False])
@pytest.mark.parametrize(("count", "size"), [(4, 16), (4, 8), (3, 20), (1, 7)])
def test_equals_the_formula_in_its_published_order(count: int, size: int, expand: bool) -> None:
    projector = Projector(CHANNELS[:count], cout=4, seed=3, expand=expand).double()
    maps = [features.requires_grad_() for features in feature_maps(size, count)]
    projected, expected = projector(maps), mixed_as_written(projector, maps)
    widths = [4, 4, 8, 16][:count] if expand else [4] * count
    assert [out.shape[1] for out in projected] == widths == list(projector.out_channels)
    for actual, wanted in zip(projected, expected, strict=True):
        torch.testing.assert_close(actual, wanted)
    gradients = torch.autograd.grad(sum(out.square().sum() for out in projected), maps)
    wanted_gradients = torch.autograd.grad(sum(out.square().sum() for out in expected), maps)
    torch.testing.assert_close(gradients, wanted_gradients)


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(0)
    first = Projector(CHANNELS, cout=8, seed=7).state_dict()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    again = Projector(CHANNELS, cout=8, seed=7).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    other = Projector(CHANNELS, cout=8, seed=8).state_dict()
    for key, weight in first.items():
        assert torch.equal(weight, again[key])
        assert not torch.equal(weight, other[key])


def test_weights_have_kaiming_scale() -> None:
    projector = Projector([128, 256], cout=64, seed=0)
    for key, weight in projector.state_dict().items():
        if key.endswith("weight"):
            expected = (2 / weight.shape[1]) ** 0.5
            assert weight.std().item() == pytest.approx(expected, rel=0.05)
            assert abs(weight.mean().item()) < 0.05 * expected
        else:
            assert weight.abs().max() <= 0.125


def test_nothing_trains_and_everything_is_saved() -> None:
    projector = Projector(CHANNELS, cout=8, seed=0)
    assert list(projector.parameters()) == []
    other = Projector(CHANNELS, cout=8, seed=1)
    other.load_state_dict(projector.state_dict(), strict=True)
    maps = [features.float() for features in feature_maps()]
    for actual, wanted in zip(other(maps), projector(maps), strict=True):
        assert torch.equal(actual, wanted)


def test_computes_in_the_maps_precision() -> None:
    projector = Projector(CHANNELS, cout=8, seed=0)
    maps = [features.float() for features in feature_maps()]
    halves = projector([features.bfloat16() for features in maps])
    for half, full in zip(halves, projector(maps), strict=True):
        assert half.dtype == torch.bfloat16
        assert (half.float() - full).norm() < 0.02 * full.norm()


def test_inference_mode_leaves_nothing_behind() -> None:
    projector = Projector(CHANNELS, cout=4).double()
    maps = feature_maps()
    with torch.inference_mode():
        projector(maps)
    leaves = [features.requires_grad_() for features in maps]
    gradients = torch.autograd.grad(projector(leaves)[0].sum(), leaves)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_on_the_meta_device() -> None:
    with torch.device("meta"):
        projector = Projector(CHANNELS, cout=8)
    assert all(weight.is_meta for weight in projector.state_dict().values())


def test_maps_that_do_not_halve_are_refused() -> None:
    maps = feature_maps(16)
    maps[3] = maps[3][..., :1]
    with pytest.raises(UserError, match=r"\(4, 4\), \(2, 1\).*multiple of 32"):
        Projector(CHANNELS, cout=8).double()(maps)
