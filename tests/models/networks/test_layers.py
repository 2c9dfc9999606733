"""Layers against plain formulas: resampling convolutions, attention, initialisation, dtypes."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from fasttrain.models.networks.conv import Conv2d
from fasttrain.models.networks.layers import (
    FourierEmbedding,
    GroupNorm,
    Init,
    Linear,
    PositionalEmbedding,
)
from fasttrain.models.networks.unet_block import UNetBlock
from fasttrain_kernels import attention, using


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("kernel", [0, 1, 3])
def test_resampling_is_the_depthwise_filter(
    taps: tuple[int, ...], direction: str, kernel: int
) -> None:
    torch.manual_seed(0)
    out_channels = 5 if kernel else 3
    flags: dict[str, Any] = {direction: True}
    conv = Conv2d(3, out_channels, kernel, resample_filter=taps, init=Init(bias=1.0), **flags)
    x = torch.randn(2, 3, 6, 10)
    taps_1d = torch.tensor(taps, dtype=torch.float32) / sum(taps)
    filters = torch.outer(taps_1d, taps_1d).expand(3, 1, -1, -1)
    pad = len(taps) // 2 - 1
    if direction == "up":
        expected = F.conv_transpose2d(x, 4 * filters, stride=2, padding=pad, groups=3)
    else:
        expected = F.conv2d(x, filters, stride=2, padding=pad, groups=3)
    if kernel:
        expected = F.conv2d(expected, conv.weight, conv.bias, padding=kernel // 2)
    torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_fused_resampling_differs_at_the_border_only(taps: tuple[int, ...], direction: str) -> None:
    torch.manual_seed(1)
    flags: dict[str, Any] = {direction: True, "resample_filter": taps, "init": Init(bias=1.0)}
    fused = Conv2d(3, 4, 3, fused_resample=True, **flags)
    plain = Conv2d(3, 4, 3, **flags)
    plain.load_state_dict(fused.state_dict())
    x = torch.randn(2, 3, 12, 16)
    a, b = fused(x), plain(x)
    assert a.shape == b.shape
    if direction == "up":
        torch.testing.assert_close(a[..., 2:-2, 2:-2], b[..., 2:-2, 2:-2])
    else:  # filter and convolution swap: one conv at full resolution, then the filter
        weight, pad = fused.weight, 1 + (len(taps) - 1) // 2
        assert weight is not None
        full = F.conv2d(x, weight, fused.bias, padding=pad)
        filters = fused.resample_filter.expand(4, 1, -1, -1)  # type: ignore[union-attr]
        torch.testing.assert_close(a, F.conv2d(full, filters, stride=2, groups=4))


def test_up_and_down_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="up or down, not both"):
        Conv2d(1, 1, 3, up=True, down=True)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("trains", [True, False])
def test_queries_keys_and_values_come_out_in_blocks(trains: bool, memory_format: Any) -> None:
    """The published channel order, (head, d, j), becomes (j, head, d), whatever the layout."""
    torch.manual_seed(2)
    heads, size = 3, 5
    conv = Conv2d(7, heads * size * 3, 1, blocks_of=heads, init=Init(bias=1.0))
    conv.requires_grad_(trains)
    x = torch.randn(2, 7, 4, 3).contiguous(memory_format=memory_format)
    published = F.conv2d(x, conv.weight, conv.bias)
    expected = (
        published.view(2, heads, size, 3, 4, 3).permute(0, 3, 1, 2, 4, 5).reshape(2, -1, 4, 3)
    )
    torch.testing.assert_close(conv(x), expected)
    with torch.no_grad():
        conv.weight.mul_(2)  # what was derived from the old weight must not be used again
        conv.bias.mul_(2)
    torch.testing.assert_close(conv(x), 2 * expected)


def frozen_convolutions() -> Iterator[Conv2d]:
    """Those that compute with something that is made of their weights."""
    torch.manual_seed(2)
    yield Conv2d(6, 6, 1, blocks_of=2, init=Init(bias=1.0)).requires_grad_(False)
    with using("triton"):  # there the doubling is folded into the weight
        yield Conv2d(6, 6, 3, up=True, init=Init(bias=1.0)).requires_grad_(False)


def test_no_write_to_a_weight_goes_unnoticed() -> None:
    """`.data` bypasses the version of a tensor, and a new one may lie where the old one did."""
    for conv in frozen_convolutions():
        x = torch.randn(1, 6, 4, 4)
        before = conv(x)
        assert conv.weight is not None
        assert conv.bias is not None
        conv.weight.data.mul_(2)
        conv.bias.data.mul_(2)
        torch.testing.assert_close(conv(x), 2 * before)
        storage = conv.weight.detach()
        conv.weight = torch.nn.Parameter(storage, requires_grad=False)
        storage.mul_(2)
        conv.bias.data.mul_(2)
        torch.testing.assert_close(conv(x), 4 * before)


def test_inference_mode_leaves_nothing_behind() -> None:
    """What it made cannot be saved for a backward pass: another pass must not meet it."""
    for conv in frozen_convolutions():
        x = torch.randn(1, 6, 4, 4)
        with torch.inference_mode():
            expected = conv(x)
        leaf = x.clone().requires_grad_()
        y = conv(leaf)
        torch.testing.assert_close(y.detach(), expected.clone())
        y.sum().backward()
        assert leaf.grad is not None


def test_networks_can_be_pickled() -> None:
    for conv in frozen_convolutions():
        x = torch.randn(1, 6, 4, 4)
        assert torch.equal(pickle.loads(pickle.dumps(conv))(x), conv(x))


@pytest.mark.parametrize(
    ("mode", "deviation", "bound"),
    [
        ("kaiming_normal", math.sqrt(1 / 400), None),
        ("kaiming_uniform", math.sqrt(1 / 400), math.sqrt(3 / 400)),
        ("xavier_normal", math.sqrt(2 / 700), None),
        ("xavier_uniform", math.sqrt(2 / 700), math.sqrt(6 / 700)),
    ],
)
def test_initial_statistics(mode: Any, deviation: float, bound: float | None) -> None:
    torch.manual_seed(3)
    layer = Linear(400, 300, init=Init(mode, weight=0.5, bias=2.0))
    weight = layer.weight.detach()
    bias = layer.bias
    assert bias is not None
    assert float(weight.mean()) == pytest.approx(0, abs=4 * deviation / math.sqrt(120_000))
    assert float(weight.std()) == pytest.approx(0.5 * deviation, rel=0.01)
    assert float(bias.detach().std()) == pytest.approx(2 * deviation, rel=0.2)
    if bound is not None:
        assert 0.99 * 0.5 * bound < float(weight.abs().max()) <= 0.5 * bound
    # A convolution's fans count its taps.
    conv = Conv2d(40, 30, 3, init=Init(mode))
    assert conv.weight is not None
    assert conv.bias is not None
    fans = 360 if mode.startswith("kaiming") else (360 + 270) / 2
    assert float(conv.weight.detach().std()) == pytest.approx(math.sqrt(1 / fans), rel=0.03)
    assert not conv.bias.any()


def test_positional_embedding_frequencies() -> None:
    x = torch.tensor([0.0, 1.5, 999.0])
    for endpoint in (False, True):
        out = PositionalEmbedding(8, endpoint=endpoint)(x)
        for i in range(4):
            frequency = 10000.0 ** (-i / (3 if endpoint else 4))
            torch.testing.assert_close(out[:, i], (x * frequency).cos(), rtol=0, atol=1e-4)
            torch.testing.assert_close(out[:, 4 + i], (x * frequency).sin(), rtol=0, atol=1e-4)


def test_fourier_embedding_uses_its_buffer() -> None:
    torch.manual_seed(4)
    layer = FourierEmbedding(2000)
    assert float(layer.freqs.std()) == pytest.approx(16, rel=0.1)
    layer.freqs.fill_(0.25)
    out = layer(torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(out[:, 0], torch.tensor([0.0, -1.0]), rtol=0, atol=1e-6)
    torch.testing.assert_close(out[:, 1000], torch.tensor([1.0, 0.0]), rtol=0, atol=1e-6)


def test_group_norm_groups_and_formula() -> None:
    assert [GroupNorm(c).groups for c in (2, 4, 36, 128, 1024)] == [1, 1, 9, 32, 32]
    assert [GroupNorm(c).groups for c in (7, 10, 144, 1000)] == [1, 2, 24, 25]
    torch.manual_seed(5)
    norm = GroupNorm(12, eps=0.1)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    x = 3 + torch.randn(2, 12, 3, 5)
    expected = F.silu(F.group_norm(x, 3, norm.weight, norm.bias, 0.1))
    torch.testing.assert_close(norm(x, silu=True), expected)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_block_against_its_formula(adaptive: bool, training: bool) -> None:
    torch.manual_seed(6)
    block = UNetBlock(
        8,
        12,
        emb_channels=10,
        heads=2,
        dropout=0.5,
        skip_scale=0.5,
        adaptive_scale=adaptive,
        init_zero=Init("xavier_uniform"),
    ).train(training)
    x, emb = torch.randn(3, 8, 5, 7), torch.randn(3, 10)

    def norm(layer: GroupNorm, h: torch.Tensor) -> torch.Tensor:
        return F.group_norm(h, layer.groups, layer.weight, layer.bias, layer.eps)

    torch.manual_seed(7)
    actual, _ = block(x, emb)
    torch.manual_seed(7)
    assert block.skip is not None
    h = block.conv0(F.silu(norm(block.norm0, x)))
    params = block.affine(emb)[:, :, None, None]
    if adaptive:
        h = norm(block.norm1, h) * (1 + params[:, :12]) + params[:, 12:]
    else:
        h = norm(block.norm1, h + params)
    h = block.conv1(F.dropout(F.silu(h), 0.5, training))
    y = (h + block.skip(x)) * 0.5
    expected = (block.proj(attention(block.qkv(norm(block.norm2, y)), heads=2)) + y) * 0.5
    torch.testing.assert_close(actual, expected)


def test_layers_cast_to_their_activations() -> None:
    torch.manual_seed(8)
    block = UNetBlock(8, 8, emb_channels=10, heads=1, init_zero=Init("xavier_uniform"))
    x, emb = torch.randn(2, 8, 6, 6), torch.randn(2, 10)
    low, _ = block(x.bfloat16(), emb)
    assert low.dtype == torch.bfloat16
    exact, _ = block(x, emb)
    error = (low.float() - exact).norm() / exact.norm()
    assert float(error.detach()) < 0.02
    low.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in block.parameters())
