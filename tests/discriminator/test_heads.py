"""Spectral norm, ghost batch norm and the heads: against torch's own, singular values, formulas."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fasttrain.discriminator import GhostBatchNorm, Head, Heads, SpectralConv2d
from fasttrain.system.errors import UserError


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(3)


def one_hot(n: int, classes: int) -> Tensor:
    return F.one_hot(torch.arange(n) % classes, classes).float()


# Spectral norm


@pytest.mark.parametrize(("cin", "cout"), [(8, 16), (5, 1), (16, 7)])
def test_sigma_converges_to_the_largest_singular_value(cin: int, cout: int) -> None:
    conv = SpectralConv2d(cin, cout, 4)
    largest = torch.linalg.svdvals(conv.weight_orig.detach().flatten(1))[0]
    assert conv.sigma().item() == pytest.approx(largest.item(), rel=0.05)  # ten at construction
    for _ in range(200):
        conv.iterate()
    torch.testing.assert_close(conv.sigma().detach(), largest, rtol=1e-4, atol=0)


def test_forward_divides_by_sigma_and_changes_no_state() -> None:
    conv = SpectralConv2d(4, 6, 4, stride=2, padding=1).train()
    before = {key: value.clone() for key, value in conv.state_dict().items()}
    x = torch.randn(2, 4, 9, 9)
    expected = F.conv2d(x, conv.weight_orig / conv.sigma(), conv.bias, stride=2, padding=1)
    torch.testing.assert_close(conv(x), expected)
    assert all(torch.equal(value, before[key]) for key, value in conv.state_dict().items())
    conv.iterate()
    assert not torch.equal(conv.weight_u, before["weight_u"])
    assert torch.equal(conv.weight_orig, before["weight_orig"])


def test_gradient_of_the_normalised_weight() -> None:
    """d(W / sigma) with u, v constant: (G - <G, W> u v^T / sigma) / sigma."""
    conv = SpectralConv2d(3, 5, 2, bias=False).double()
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    conv(x).square().sum().backward()
    weight = (conv.weight_orig / conv.sigma()).detach().requires_grad_()
    (grad,) = torch.autograd.grad(F.conv2d(x, weight).square().sum(), weight)
    sigma, original = conv.sigma().detach(), conv.weight_orig.detach()
    outer = torch.outer(conv.weight_u, conv.weight_v).view_as(original)
    expected = (grad - (grad * original).sum() * outer / sigma) / sigma
    torch.testing.assert_close(conv.weight_orig.grad, expected)


def test_bfloat16_activations_keep_float32_parameters() -> None:
    conv = SpectralConv2d(4, 6, 4)
    x = torch.randn(2, 4, 8, 8)
    y = conv(x.bfloat16())
    assert (y.dtype, conv.weight_orig.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(y.float(), conv(x), atol=0.05, rtol=0.05)


# Ghost batch norm


@pytest.mark.parametrize(("groups", "group"), [(1, 6), (3, 2), (2, 5)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_equals_torch_batch_norm_on_each_group(
    groups: int, group: int, channels_last: bool
) -> None:
    norm = GhostBatchNorm(7, group)
    reference = nn.BatchNorm2d(7, track_running_stats=False)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    reference.load_state_dict(norm.state_dict())
    x = torch.randn(groups * group, 7, 3, 5) * 3 + 1
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    weights = torch.randn(x.shape)
    actual = norm(x)
    expected = torch.cat([reference(part) for part in x.split(group)])
    torch.testing.assert_close(actual, expected)
    gradients = torch.autograd.grad((actual * weights).sum(), [x, *norm.parameters()])
    wanted = torch.autograd.grad((expected * weights).sum(), [x, *reference.parameters()])
    torch.testing.assert_close(gradients, wanted, atol=1e-5, rtol=1e-4)


def test_batch_norm_differentiates_twice() -> None:
    norm = GhostBatchNorm(2, 2).double()
    x = torch.randn(4, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(norm, (x,))


def test_a_group_is_independent_of_the_others() -> None:
    norm = GhostBatchNorm(3, 4)
    x = torch.randn(8, 3, 4, 4)
    poisoned = x.clone()
    poisoned[4:] = float("nan")
    assert torch.equal(norm(poisoned)[:4], norm(x)[:4])
    torch.testing.assert_close(torch.cat([norm(x[:4]), norm(x[4:])]), norm(x))


def test_batch_that_the_group_does_not_divide() -> None:
    with pytest.raises(UserError, match=r"groups of 16 images got 24 images.*norm_group"):
        GhostBatchNorm(3, 16)(torch.zeros(24, 3, 4, 4))
    with pytest.raises(UserError, match="norm_group is 0"):
        GhostBatchNorm(3, 0)


# Heads


def published(label_dim: int) -> nn.ModuleList:
    """The heads of two backbones in the published form, without memory."""
    with torch.device("meta"):
        return nn.ModuleList(
            Heads([64, 64, 128, 256], norm_group=16, label_dim=label_dim) for _ in range(2)
        )


@pytest.mark.parametrize(("label_dim", "count"), [(0, 20_662_656), (1000, 27_515_776)])
def test_published_parameter_counts(label_dim: int, count: int) -> None:
    assert sum(parameter.numel() for parameter in published(label_dim).parameters()) == count


def test_published_layers_of_the_first_head() -> None:
    heads = published(0)[0]
    widths = [
        tuple(parameter.shape)
        for name, parameter in heads.named_parameters()
        if name.startswith("mini_discs.0.") and name.endswith("weight_orig")
    ]
    channels = [64, 64, 128, 256, 512]
    hidden = [(b, a, 4, 4) for a, b in pairwise(channels)]
    assert widths == [*hidden, (1, 512, 4, 4)]


def test_head_is_the_formula() -> None:
    """Convolution, norm over the group, leaky ReLU; then 4x4 patches; then the class projection."""
    means = torch.randn(3, 11)
    head = Head(6, 16, 4, width=10, label_dim=3, class_embedding=means)
    x, labels = torch.randn(4, 6, 12, 12), one_hot(4, 3)
    conv, norm, last = head.main[0].main[0], head.main[0].main[1], head.main[1]
    h = F.conv2d(x, conv.weight_orig / conv.sigma(), conv.bias, stride=2, padding=1)
    h = F.batch_norm(h, None, None, norm.weight, norm.bias, training=True)
    h = F.conv2d(F.leaky_relu(h, 0.2), last.weight_orig / last.sigma())
    e = (labels @ means) @ head.embed_proj.weight.t() / math.sqrt(11) + head.embed_proj.bias
    e = F.leaky_relu(e, 0.2) * math.sqrt(2)
    expected = (h * e[:, :, None, None]).sum(1).flatten(1) / 8
    assert expected.shape == (4, 9)
    torch.testing.assert_close(head(x, labels), expected, atol=1e-5, rtol=1e-4)


def test_heads_differentiate_twice_in_everything() -> None:
    heads = Heads([3, 4], resolutions=(16, 8), norm_group=2, width=4, label_dim=2).double()
    maps = [torch.randn(4, 3, 8, 8), torch.randn(4, 4, 4, 4)]
    inputs = [features.double().requires_grad_() for features in maps]
    labels = one_hot(4, 2)
    logits = heads(inputs, labels)
    gradients = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    sum(gradient.square().sum() for gradient in gradients).backward()
    for name, parameter in heads.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    parameter = heads.mini_discs[0].main[0].main[0].weight_orig

    def penalty() -> Tensor:
        found = torch.autograd.grad(heads(inputs, labels).sum(), inputs)
        return sum((gradient.square().sum() for gradient in found), torch.zeros(()))

    assert parameter.grad is not None
    with torch.no_grad():
        direction, step = torch.randn_like(parameter), 1e-6
        parameter.add_(direction, alpha=step)
    above = penalty()
    with torch.no_grad():
        parameter.sub_(direction, alpha=2 * step)
    slope = (above - penalty()) / (2 * step)
    torch.testing.assert_close(slope, (parameter.grad * direction).sum(), rtol=1e-4, atol=1e-6)


def test_logits_do_not_depend_on_the_micro_batch() -> None:
    heads = Heads([8, 8], resolutions=(32, 16), norm_group=4, width=32, label_dim=3)
    maps = [torch.randn(8, 8, 32, 32), torch.randn(8, 8, 16, 16)]
    labels = one_hot(8, 3)
    whole = heads(maps, labels)
    halves = [heads([m[i : i + 4] for m in maps], labels[i : i + 4]) for i in (0, 4)]
    torch.testing.assert_close(torch.cat(halves), whole, atol=1e-5, rtol=1e-4)


def test_labels_matter_and_the_embedding_starts_at_the_class_means() -> None:
    means = torch.randn(3, 320)
    heads = Heads([4], resolutions=(8,), norm_group=2, label_dim=3, class_embedding=means)
    assert torch.equal(heads.mini_discs[0].embed.weight, means)
    assert heads.mini_discs[0].embed.weight.requires_grad
    means.zero_()
    assert heads.mini_discs[0].embed.weight.abs().sum() > 0
    maps = [torch.randn(2, 4, 8, 8)]
    first, second = (heads(maps, one_hot(3, 3)[i : i + 1].expand(2, 3)) for i in (0, 1))
    assert (first - second).abs().min() > 0


def test_a_map_of_four_pixels_gets_the_last_convolution_only() -> None:
    head = Head(6, 4, 2)
    assert len(head.main) == 1
    x = torch.randn(2, 6, 4, 4)
    weight = head.main[0].weight_orig / head.main[0].sigma()
    torch.testing.assert_close(head(x), torch.einsum("nchw,ochw->no", x, weight))


def test_clear_errors() -> None:
    with pytest.raises(UserError, match="nominal resolution 32 halves a map of 8 px to 2 px"):
        Head(6, 32, 2)(torch.zeros(2, 6, 8, 8))
    with pytest.raises(UserError, match="24 is not a power of two"):
        Head(6, 24, 2)
    with pytest.raises(UserError, match=r"3 head resolutions .* for 2 feature maps"):
        Heads([1, 2], resolutions=(32, 16, 8), norm_group=2)
    with pytest.raises(UserError, match=r"embedding of shape \(2, 320\) for 3 classes"):
        Head(6, 8, 2, label_dim=3, class_embedding=torch.zeros(2, 320))
    with pytest.raises(UserError, match=r"one-hot class_labels \[N, 3\], got none"):
        Head(6, 8, 2, label_dim=3)(torch.zeros(2, 6, 8, 8))
    with pytest.raises(UserError, match=r"got shape \(2, 4\)"):
        Head(6, 8, 2, label_dim=3)(torch.zeros(2, 6, 8, 8), torch.zeros(2, 4))


def test_with_fewer_resolutions_the_smallest_maps_are_not_judged() -> None:
    torch.manual_seed(0)
    heads = Heads([3, 4, 5], resolutions=(16, 8), norm_group=2, width=4)
    maps = [torch.randn(2, c, s, s) for c, s in ((3, 16), (4, 8), (5, 4))]
    logits = heads(maps)
    expected = torch.cat([heads.mini_discs[k](maps[k]) for k in (0, 1)], dim=1)
    assert torch.equal(logits, expected)
    assert torch.equal(heads([maps[0], maps[1], torch.full_like(maps[2], torch.nan)]), expected)
