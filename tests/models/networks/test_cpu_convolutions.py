"""Convolutions in bfloat16 on a CPU: the forms that it has fast code for, and the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fasttrain.models.features.efficientnet_lite import fold_batch_norms, load_pretrained
from fasttrain.models.networks import frozen_conv, trained_conv
from fasttrain.models.networks.frozen_conv import frozen_conv2d, relu6_along
from fasttrain.models.networks.trained_conv import trained_conv2d

LAYOUTS = (torch.contiguous_format, torch.channels_last)


class Convolutions(TorchDispatchMode):
    """Records names of operators, dtype and groups of each convolution's first operand, and the
    gradients wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.seen: list[tuple[torch.dtype, int]] = []
        self.wanted: list[list[bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        if func is torch.ops.aten.convolution.default:
            self.seen.append((args[0].dtype, args[8]))
        if func is torch.ops.aten.convolution_backward.default:
            self.wanted.append(args[10])
        return func(*args, **(kwargs or {}))


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize(("kernel", "size"), [(4, 16), (6, 8), (3, 9)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradient_of_strided_depthwise_convolutions_is_in_float32(
    kernel: int, size: int, layout: torch.memory_format
) -> None:
    """Only theirs: in bfloat16 it took ten to a hundred times as long."""
    torch.manual_seed(0)
    x = torch.randn(4, 24, size, size).bfloat16().contiguous(memory_format=layout)
    weight = torch.randn(24, 1, kernel, kernel).bfloat16()
    options: dict[str, Any] = {"padding": (kernel // 2,) * 2, "groups": 24}
    for stride, dtype in ((2, torch.float32), (1, torch.bfloat16)):
        leaf = x.detach().requires_grad_()
        y = frozen_conv2d(leaf, weight, stride=(stride, stride), **options)
        grad = torch.randn_like(y)
        with Convolutions() as used:
            (dx,) = torch.autograd.grad(y, leaf, grad)
        assert used.seen == [(dtype, 24)]
        assert dx.dtype == torch.bfloat16
        exact = x.double().requires_grad_()
        conv = F.conv2d(exact, weight.double(), None, stride, **options)
        assert error(dx, torch.autograd.grad(conv, exact, grad.double())[0]) < 4e-3


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("channels", "out", "kernel", "stride", "padding", "size"),
    [(128, 128, 4, 2, 1, 8), (160, 128, 3, 1, 1, 5), (256, 64, 4, 1, 0, 4), (130, 127, 3, 2, 1, 7)],
)
def test_weight_gradients_by_products(
    channels: int, out: int, kernel: int, stride: int, padding: int, size: int,
    layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(trained_conv, "CHUNK", 300_000)  # several parts, the last smaller
    torch.manual_seed(0)
    x = torch.randn(7, channels, size, size).bfloat16().contiguous(memory_format=layout)
    weight, bias = torch.randn(out, channels, kernel, kernel) / 50, torch.randn(out)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    y = trained_conv2d(*leaves, stride=stride, padding=padding)
    assert y.is_contiguous(memory_format=layout)
    grad = torch.randn_like(y)
    with Convolutions() as used:
        found = torch.autograd.grad(y, leaves, grad)
    wide = channels * out >= trained_conv.WIDE
    assert [wanted[1] for wanted in used.wanted] == [not wide]
    doubles = [t.detach().bfloat16().double().requires_grad_() for t in leaves]
    exact_y = F.conv2d(*doubles, stride, padding)
    assert error(y.detach(), exact_y.detach()) < 4e-3
    exact = torch.autograd.grad(exact_y, doubles, grad.double())
    for ours, theirs, leaf in zip(found, exact, leaves, strict=True):
        assert ours.dtype == leaf.dtype
        assert error(ours, theirs) < 4e-3


def test_weight_gradients_by_products_have_a_second_order() -> None:
    torch.manual_seed(0)
    values = torch.randn(2, 128, 4, 4), torch.randn(128, 128, 3, 3) / 30, torch.randn(128)

    def penalty(conv: Any, dtype: torch.dtype) -> tuple[Tensor, ...]:
        x, weight, bias = (t.to(dtype).requires_grad_() for t in values)
        if dtype == torch.bfloat16:
            weight, bias = (t.detach().float().requires_grad_() for t in (weight, bias))
        y = conv(x, weight, bias, padding=1)
        (dx,) = torch.autograd.grad(y.float().square().sum(), x, create_graph=True)
        return torch.autograd.grad(dx.double().square().sum(), (x, weight, bias))

    found = penalty(trained_conv2d, torch.bfloat16)
    for ours, theirs in zip(found, penalty(F.conv2d, torch.float64), strict=True):
        assert error(ours, theirs) < 2e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_relu6_goes_along_with_convolutions(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 that changes no bit, in float32 the last. Of images that are not finite they do
    not: oneDNN makes numbers of NaN."""
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported() and dtype == torch.bfloat16:
        pytest.skip("this CPU's bfloat16 convolutions are not oneDNN's")
    torch.manual_seed(0)
    network = load_pretrained("lite0")
    fold_batch_norms(network)
    network.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(3, 3, 64, 64).to(dtype)
    broken = images.clone()
    broken[1, 0, 20, 20] = torch.nan
    clamped = {"clamp", "clamp_", "hardtanh", "hardtanh_"}
    found = []
    for x, along in ((images, True), (broken, False)):
        with Convolutions() as used:
            found.append([*network.stages(x), network.pooled(x)])
        assert ("_convolution_pointwise" in used.names) == along
        assert bool(clamped & used.names) != along
    monkeypatch.setattr(frozen_conv, "_on_onednn", lambda x: False)
    for x, maps in zip((images, broken), found, strict=True):
        for ours, apart in zip(maps, [*network.stages(x), network.pooled(x)], strict=True):
            assert torch.equal(ours.isnan(), apart.isnan())
            ours, apart = ours.nan_to_num(), apart.nan_to_num()
            assert error(ours, apart) <= (1e-5 if dtype == torch.float32 else 0)
    for map_ in found[1]:
        assert map_[1].isnan().any()
        assert map_[[0, 2]].isfinite().all()


def test_gradients_through_relu6_that_went_along() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 8, 6, 6).requires_grad_()
    weight, bias = torch.randn(12, 8, 3, 3), torch.randn(12)
    with relu6_along(x):
        y = frozen_conv2d(x, weight, bias, padding=(1, 1), activation="relu6")
    exact = x.detach().double().requires_grad_()
    conv = F.relu6(F.conv2d(exact, weight.double(), bias.double(), 1, 1))
    seed = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, x, seed)
    assert error(dx, torch.autograd.grad(conv, exact, seed.double())[0]) < 1e-5
