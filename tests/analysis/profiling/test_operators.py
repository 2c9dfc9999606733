"""Classes, bytes, operations and saved activations against counts by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fasttrain_kernels  # noqa: F401 (registers its operators)
from fasttrain.analysis.profiling.operators import CLASSES, OperatorCount, class_of, kept
from fasttrain.models.networks.frozen_conv import frozen_conv2d, relu6_along
from fasttrain.models.networks.unet_block import UNetBlock
from fasttrain_kernels import using


def count(work: Callable[[], Any]) -> OperatorCount:
    with OperatorCount() as counted:
        work()
    return counted


X = torch.randn(2, 3, 8, 8)  # 384 values
ROW = torch.randn(3, 1, 1)


@pytest.mark.parametrize(
    ("name", "work", "values"),
    [
        ("add", lambda: X + X.flip(0), None),
        ("add", lambda: X + ROW, 384 + 3 + 384),
        ("mul", lambda: X * X, 384 + 384),  # one tensor, read once
        ("mul", lambda: X.expand(4, 2, 3, 8, 8) * 2.0, 384 + 4 * 384),
        ("add_", lambda: X.clone().add_(X), 384 + 384 + 384),  # both read, one written
        ("copy_", lambda: torch.empty(2, 3, 8, 8).copy_(X), 384 + 384),  # what it replaces: unread
        ("fill_", lambda: torch.empty(5).fill_(1.0), 5),
        ("sum", lambda: X.sum(), 384 + 1),
        ("cat", lambda: torch.cat([X, X.flip(0)]), 768 + 768),
        ("view", lambda: X.view(2, -1), 0),
        ("permute", lambda: X.permute(0, 2, 3, 1), 0),
        ("empty", lambda: torch.empty(100), 0),
    ],
)
def test_bytes_of_simple_operators(name: str, work: Callable[[], Any], values: int | None) -> None:
    values = 3 * 384 if values is None else values
    assert count(work).operators[f"aten::{name}"].bytes == 4 * values


def test_bytes_of_another_dtype_and_of_a_cast() -> None:
    low = X.bfloat16()
    assert count(lambda: low + low.flip(0)).operators["aten::add"].bytes == 2 * 3 * 384
    assert count(lambda: X.to(torch.bfloat16)).operators["aten::_to_copy"].bytes == 4 * 384 + 768


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_a_convolution_that_takes_its_relu6_along() -> None:
    weight, bias = torch.randn(5, 3, 3, 3), torch.randn(5)
    with relu6_along(X):
        counted = count(lambda: frozen_conv2d(X, weight, bias, padding=(1, 1), activation="relu6"))
    found = counted.by_class()["convolution"]
    assert found.flops == counted.total().flops == 2 * (2 * 64 * 5) * (3 * 9)
    assert found.bytes == counted.total().bytes == 4 * (384 + 135 + 5 + 640)


def test_convolution_forward_and_backward() -> None:
    weight = torch.randn(5, 3, 3, 3, requires_grad=True)
    bias = torch.randn(5, requires_grad=True)
    x = X.clone().requires_grad_()
    y = F.conv2d(x, weight, bias, padding=1)
    forward = count(lambda: F.conv2d(X, weight, bias, padding=1))
    sizes = {"x": 384, "w": 135, "b": 5, "y": 2 * 5 * 64}
    operations = 2 * 2 * 5 * 64 * 27  # two for each multiply-add
    cost = forward.operators["aten::convolution"]
    assert (cost.bytes, cost.flops) == (4 * sum(sizes.values()), operations)

    def backward(*inputs: Tensor) -> tuple[int, int]:
        dy = torch.randn_like(y)
        counted = count(lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True))
        cost = counted.operators["aten::convolution_backward"]
        return cost.bytes // 4, cost.flops

    both = (sizes["y"] + 2 * sizes["x"] + 2 * sizes["w"] + sizes["b"], 2 * operations)
    assert backward(x, weight, bias) == both
    # A gradient that is not asked for needs no read: the input's not the input, and so on.
    assert backward(x) == (sizes["y"] + sizes["w"] + sizes["x"], operations)
    assert backward(weight) == (sizes["y"] + sizes["x"] + sizes["w"], operations)


def test_fused_adam_reads_four_and_writes_three() -> None:
    parameter = nn.Parameter(torch.randn(100))
    optimizer = torch.optim.Adam([parameter], fused=True)
    parameter.grad = torch.randn(100)
    optimizer.step()
    cost = count(optimizer.step).operators["aten::_fused_adam_"]
    assert cost.bytes == 4 * (7 * 100 + 1)  # and the step's number
    assert cost.calls == 1


def test_calls_are_those_that_move_something() -> None:
    counted = count(lambda: (X.view(2, -1) + 1).t())
    assert counted.total().calls == 1
    assert counted.by_class()["elementwise"].calls == 1


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::convolution_backward", "convolution"),
        ("aten::cudnn_convolution", "convolution"),
        ("aten::conv2d", "convolution"),
        ("aten::mm", "matrix product"),
        ("aten::addmm", "matrix product"),
        ("aten::native_group_norm_backward", "norm"),
        ("aten::native_batch_norm", "norm"),
        ("fasttrain::group_norm", "norm"),
        ("aten::linalg_vector_norm", "elementwise"),
        ("aten::normal_", "elementwise"),
        ("aten::_scaled_dot_product_flash_attention_backward", "attention"),
        ("aten::_scaled_dot_product_cudnn_attention", "attention"),
        ("aten::_softmax", "attention"),
        ("fasttrain::attention_backward", "attention"),
        ("aten::silu_backward", "elementwise"),
        ("aten::softplus", "elementwise"),
        ("aten::upsample_bilinear2d_backward", "resampling"),
        ("aten::avg_pool2d", "resampling"),
        ("aten::copy_", "memory/copy"),
        ("aten::_to_copy", "memory/copy"),
        ("aten::convert", "other"),
        ("aten::_fused_adam_", "optimizer"),
        ("aten::_foreach_lerp_", "optimizer"),
        ("Optimizer.step#Adam.step", "optimizer"),
        ("ConvolutionBackward0", "other"),
        ("autograd::engine::evaluate_function: MulBackward0", "other"),
        ("forward G", "other"),
    ],
)
def test_classes(name: str, kind: str) -> None:
    assert class_of(name) == kind
    assert kind in CLASSES


def test_every_operator_of_the_kernels_has_a_class() -> None:
    names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("fasttrain::")]
    names = [name for name in names if not name.startswith("fasttrain::test_")]  # another test's
    assert {name.partition("::")[2] for name in names} >= {"group_norm", "attention"}
    assert [name for name in names if class_of(name) == "other"] == []


def test_a_block_on_the_kernels_is_counted_whole() -> None:
    """Their inner work is theirs: what is seen is the operator, its bytes and its operations."""
    block = UNetBlock(8, 8, emb_channels=4, heads=1)
    x, emb = torch.randn(1, 8, 4, 4, requires_grad=True), torch.randn(1, 4)
    with using("triton"):
        counted = count(lambda: block(x, emb)[0].sum().backward())
    seen = counted.operators
    qkv, tokens = 3 * 8 * 16, 16
    assert seen["fasttrain::attention"].flops == 2 * 2 * tokens**2 * 8
    assert seen["fasttrain::attention_backward"].flops == 5 * 2 * tokens**2 * 8
    assert seen["fasttrain::attention"].bytes >= 4 * (qkv + 8 * 16)
    assert seen["fasttrain::group_norm"].calls == 3
    assert seen["fasttrain::group_norm"].bytes >= 3 * 4 * 2 * 8 * 16
    assert counted.by_class()["other"].bytes == 0


def test_attention_on_a_cpu_counts_as_on_a_gpu() -> None:
    q, k, v = (torch.randn(2, 3, 16, 8, requires_grad=True) for _ in range(3))
    counted = count(lambda: F.scaled_dot_product_attention(q, k, v).sum().backward())
    product = 2 * 2 * 3 * 16 * 16 * 8
    assert counted.by_class()["attention"].flops == 7 * product


def test_saved_activations_by_hand() -> None:
    w1, w2 = (nn.Parameter(torch.randn(64, 64)) for _ in range(2))
    x = torch.randn(10, 64)
    with kept([w1, w2]) as saved:
        h = x @ w1  # keeps x and w1 (x alone counts)
        y = torch.tanh(h)  # keeps y
        z = (y.view(640).view(10, 64) @ w2) * 2.0  # keeps a view of y: the same storage
    assert saved.bytes == 4 * 2 * 640
    z.sum().backward()
    assert w1.grad is not None
    with kept([w1, w2]) as saved, torch.no_grad():
        torch.tanh(x @ w1)
    assert saved.bytes == 0
