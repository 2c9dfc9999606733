"""attention against its definition in float64: outputs, gradients, second order, the choice."""

from __future__ import annotations

import math
from importlib import import_module
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from fasttrain_kernels import attention, attention_reference, blocked_rows, using
from tests.kernels.support import DEVICE, TOLERANCE, guarded, relative_error

op: Any = import_module("fasttrain_kernels.attention")
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}

SHAPES = [  # samples, heads, head size, height, width: one token, odd sizes, whole blocks, padding
    (1, 1, 32, 1, 1),
    (2, 3, 16, 5, 7),
    (1, 2, 64, 4, 4),
    (2, 1, 40, 3, 6),
    (1, 1, 128, 2, 9),
]
PLANS = {
    "as launched": None,
    "keys in blocks": op.Plan(32, 16, 1, 1),
    "queries in blocks": op.Plan(16, 32, 1, 1),
}


def make(
    shape: tuple[int, ...], dtype: torch.dtype, layout: str, spread: float = 1.0, seed: int = 0
) -> Tensor:
    samples, heads, size, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(samples, 3 * heads * size, height, width, generator=generator) * spread
    values = values.contiguous(memory_format=LAYOUTS[layout])
    return guarded(values, dtype).requires_grad_()


def definition(qkv: Tensor, heads: int) -> Tensor:
    samples, channels, height, width = qkv.shape
    size = channels // 3 // heads
    q, k, v = qkv.reshape(samples, 3, heads, size, height * width).unbind(1)
    weights = torch.einsum("nhdq,nhdk->nhqk", q, k).div(math.sqrt(size)).softmax(-1)
    return torch.einsum("nhqk,nhdk->nhdq", weights, v).reshape(samples, -1, height, width)


def triton_op(qkv: Tensor, heads: int) -> Tensor:
    return attention(qkv, heads=heads, impl="triton")


def reference(qkv: Tensor, heads: int) -> Tensor:
    return attention(qkv, heads=heads, impl="reference")


OPS = {"triton": triton_op, "reference": reference}


def assert_same_as_definition(function: Any, qkv: Tensor, heads: int, factor: float = 1.0) -> None:
    exact = qkv.detach().double().requires_grad_()
    expected = definition(exact, heads)
    y = function(qkv, heads)
    tolerance = factor * TOLERANCE[qkv.dtype]
    assert y.dtype == qkv.dtype
    assert y.shape == expected.shape
    assert relative_error(y, expected) < tolerance
    generator = torch.Generator().manual_seed(1)
    dy = torch.randn(y.shape, generator=generator)
    dy = guarded(torch.empty_like(y, device="cpu", dtype=torch.float32).copy_(dy), y.dtype)
    (grad,) = torch.autograd.grad(y, qkv, dy)
    (expected_grad,) = torch.autograd.grad(expected, exact, dy.double())
    assert grad.dtype == qkv.dtype
    assert relative_error(grad, expected_grad) < tolerance


@pytest.mark.parametrize("function", OPS.values(), ids=OPS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_dtypes_and_layouts(function, layout, dtype, shape) -> None:
    assert_same_as_definition(function, make(shape, dtype, layout), shape[1], factor=2)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks(plan, layout, dtype, monkeypatch) -> None:
    """Several blocks of queries and of keys, the last of each cut short."""
    if plan is not None:
        monkeypatch.setattr(op, "plan_forward", lambda *sizes: plan)
        monkeypatch.setattr(op, "plan_backward", lambda *sizes: plan)
    shape = (1, 2, 16, 7, 11)
    assert_same_as_definition(triton_op, make(shape, dtype, layout), shape[1], factor=2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_of_16_bit_blocks(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """As compiled: P and dS are rounded to 16 bits before their products."""
    monkeypatch.setattr(op, "INTERPRETED", False)
    for layout in LAYOUTS:
        assert_same_as_definition(triton_op, make((1, 2, 16, 5, 7), dtype, layout), 2, factor=2)


@pytest.mark.parametrize("tokens", [300, 257])
def test_more_tokens_than_one_tile(tokens: int) -> None:
    shape = (1, 1, 16, 1, tokens)
    assert_same_as_definition(triton_op, make(shape, torch.bfloat16, "channels_last"), 1, factor=2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_of_thousands_saturate_without_overflow(layout: str) -> None:
    qkv = make((1, 1, 16, 4, 5), torch.float32, layout, spread=60.0)
    scores = torch.einsum("ndq,ndk->nqk", *qkv.detach().flatten(2).split(16, 1)[:2]) / 4
    assert float(scores.abs().max()) > 5000
    expected = definition(qkv.detach().double(), 1)
    y = triton_op(qkv, 1)
    assert relative_error(y, expected) < 1e-3
    (grad,) = torch.autograd.grad(y.sum(), qkv)
    assert grad.isfinite().all()


def test_a_token_that_is_not_finite_spoils_its_own_head_only() -> None:
    qkv = make((2, 2, 16, 3, 3), torch.float32, "contiguous").detach()
    clean = triton_op(qkv, 2)
    qkv[0, 5, 1, 1] = float("nan")  # in q of the first sample's first head
    y = triton_op(qkv, 2)
    assert y[0, :16, 1, 1].isnan().all()
    kept = torch.ones(2, 32, 3, 3, dtype=torch.bool)
    kept[0, :16, 1, 1] = False
    assert torch.equal(y[kept], clean[kept])


@pytest.mark.parametrize("function", OPS.values(), ids=OPS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_memory_format_stays(function: Any, layout: str) -> None:
    qkv = make((2, 2, 16, 3, 5), torch.float32, layout)
    y = function(qkv, 2)
    assert y.is_contiguous(memory_format=LAYOUTS[layout])
    (grad,) = torch.autograd.grad(y.sum(), qkv)
    assert grad.is_contiguous(memory_format=LAYOUTS[layout])


def test_gradients_of_another_layout() -> None:
    qkv = make((2, 2, 16, 3, 5), torch.float32, "channels_last")
    dy = torch.randn(2, 32, 5, 3, device=DEVICE).mT
    (grad,) = torch.autograd.grad(triton_op(qkv, 2), qkv, dy)
    (expected,) = torch.autograd.grad(definition(qkv.double(), 2), qkv, dy.double())
    assert relative_error(grad, expected) < 1e-5


def test_inputs_are_not_overwritten_and_results_repeat() -> None:
    qkv = make((1, 2, 16, 5, 5), torch.float32, "channels_last")
    before = qkv.detach().clone()
    y = triton_op(qkv, 2)
    dy = torch.randn_like(y)
    first, second = (torch.autograd.grad(y, qkv, dy, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(qkv, before)
    assert torch.equal(first, second)
    assert torch.equal(y, triton_op(qkv, 2))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_second_order(layout: str) -> None:
    """A gradient penalty: what create_graph builds must not hold the kernel's result as a
    constant. In float32 against the definition, and gradgradcheck of the formula in float64."""
    qkv = make((1, 2, 16, 2, 3), torch.float32, layout)

    def penalty(function: Any, x: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad((function(x, 2) ** 2).sum(), x, create_graph=True)
        return torch.autograd.grad((grad**2).sum(), x)[0]

    exact = qkv.detach().double().requires_grad_()
    expected = penalty(definition, exact)
    assert relative_error(penalty(triton_op, qkv), expected) < 1e-5
    small = torch.randn(1, 12, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: op._plain(x, 2), small, fast_mode=True)


def test_compiled_graphs_hold_the_op_whole() -> None:
    graphs: list[str] = []

    def record(module: Any, example_inputs: Any) -> Any:
        graphs.extend(str(node.target) for node in module.graph.nodes)
        return module.forward

    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    def recorder(module: Any, inputs: Any) -> Any:
        return make_boxed_func(record(module, inputs))

    qkv = make((1, 2, 16, 3, 3), torch.float32, "channels_last")
    expected = torch.autograd.grad(triton_op(qkv, 2).square().sum(), qkv)[0]
    for backend in (aot_autograd(fw_compiler=recorder, bw_compiler=recorder), "aot_eager"):
        torch._dynamo.reset()
        compiled = torch.compile(triton_op, fullgraph=True, backend=backend)
        got = torch.autograd.grad(compiled(qkv, 2).square().sum(), qkv)[0]
        torch.testing.assert_close(got, expected)
    assert graphs.count("fasttrain.attention.default") == 1
    assert graphs.count("fasttrain.attention_backward.default") == 1
    assert not any("clone" in target for target in graphs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_registration_is_sound(layout: str) -> None:
    qkv = make((2, 2, 16, 3, 3), torch.float32, layout)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(op._forward.custom, (qkv, 2), test_utils=tests)
    y, lse = op._forward(qkv.detach(), 2)
    arguments = (torch.randn_like(y), qkv.detach(), y, lse)
    torch.library.opcheck(op._backward.custom, arguments, test_utils=tests)


@pytest.mark.parametrize("function", OPS.values(), ids=OPS)
def test_an_empty_batch(function: Any) -> None:
    qkv = torch.zeros(0, 48, 3, 3, device=DEVICE, requires_grad=True)
    y = function(qkv, 1)
    assert y.shape == (0, 16, 3, 3)
    y.sum().backward()
    assert qkv.grad is not None


@pytest.mark.parametrize("heads", [1, 3])
def test_blocked_rows(heads: int) -> None:
    """Row (head * D + d) * 3 + j becomes row j * C + head * D + d, in weights and biases."""
    size = 5
    weight = torch.randn(3 * heads * size, 7, 1, 1, requires_grad=True)
    rows = [
        (head * size + d) * 3 + j for j in range(3) for head in range(heads) for d in range(size)
    ]
    assert torch.equal(blocked_rows(weight, heads), weight[rows])
    assert torch.equal(blocked_rows(weight[:, 0, 0, 0], heads), weight[rows, 0, 0, 0])
    seed = torch.randn_like(weight)
    (grad,) = torch.autograd.grad(blocked_rows(weight, heads), weight, seed)
    assert torch.equal(grad[rows], seed)


def test_auto_takes_the_measured_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(op.MEASURED.values()) <= set(get_args(op.Choice))
    monkeypatch.setattr(
        op, "MEASURED", {("H100", 64, 16, "bfloat16"): "triton", ("H100", 9, 16, "float32"): "sdpa"}
    )
    qkv = torch.zeros(1, 48, 8, 8, dtype=torch.bfloat16)
    assert op.fastest("NVIDIA H100 80GB HBM3", qkv, 16) == "triton"
    assert op.fastest("NVIDIA H200", qkv, 16) == "sdpa"
    assert op.fastest("NVIDIA H100 80GB HBM3", qkv.float(), 16) == "sdpa"
    assert op.fastest("NVIDIA H100 80GB HBM3", qkv[..., :3, :3], 16) == "sdpa"


@pytest.mark.parametrize("choice", get_args(op.Choice))
def test_auto_on_a_gpu_runs_what_was_chosen(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for what only a GPU has."""
    ran: list[str] = []
    monkeypatch.setattr(op, "resolve", lambda impl, tensor: "triton")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(op, "fastest", lambda gpu, qkv, size: choice)
    monkeypatch.setattr(op, "_forward", lambda qkv, heads: (ran.append("triton"), None))
    monkeypatch.setattr(op, "attention_reference", lambda qkv, heads: ran.append("sdpa"))
    backends: list[Any] = []

    class Kernel(SimpleNamespace):
        def __enter__(self) -> None:
            assert self.in_order
            backends.append(self.backends[0])

        def __exit__(self, *error: Any) -> None:
            pass

    def in_turn(backends: list[Any], set_priority: bool) -> Kernel:
        return Kernel(backends=backends, in_order=set_priority)

    monkeypatch.setattr(op, "sdpa_kernel", in_turn)
    attention(torch.zeros(1, 48, 2, 2), heads=1)
    assert ran == ["triton" if choice == "triton" else "sdpa"]
    assert [b.name for b in backends] == {
        "sdpa_flash": ["FLASH_ATTENTION"],
        "sdpa_cudnn": ["CUDNN_ATTENTION"],
    }.get(choice, [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qkv": torch.zeros(1, 48, 9)}, r"floating-point tensor \[N, 3 C, H, W\]"),
        ({"qkv": torch.zeros(1, 48, 3, 3, dtype=torch.int64)}, "torch.int64"),
        ({"heads": 5}, "48 channels: they must divide by 3 times 5 heads"),
        ({"heads": 0}, "must divide by 3 times 0 heads"),
        ({"impl": "fast"}, "unknown implementation 'fast'"),
        ({"qkv": torch.zeros(1, 3 * 256, 2, 2), "impl": "triton"}, "at most 128 channels, got 256"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention(**{"qkv": torch.zeros(1, 48, 3, 3), "heads": 1, **changes})


def test_a_gpu_before_sm_80_takes_sdpa(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton has no tensor cores there: 144 KB of shared memory are wanted and 64 are there."""
    monkeypatch.setattr(op, "_arch", lambda qkv: 75)
    monkeypatch.setattr(op, "_forward", None)  # the kernel
    qkv = make((1, 2, 96, 2, 2), torch.float32, "contiguous").detach()
    with pytest.raises(ValueError, match="GPUs from sm_80 on, this one is sm_75: use impl='auto'"):
        attention(qkv, heads=2, impl="triton")
    with using("triton"):
        torch.testing.assert_close(attention(qkv, heads=2), definition(qkv, 2))


def test_heads_too_large_for_the_kernels_take_sdpa() -> None:
    qkv = torch.randn(1, 3 * 256, 2, 3)
    expected = definition(qkv.double(), 1)
    assert relative_error(attention(qkv, heads=1), expected) < 1e-6
    assert relative_error(attention_reference(qkv, heads=1), expected) < 1e-6


def test_short_sequences_on_a_cpu_are_products_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's backward pass is slow for them, and its scores must stay in float32: rounded to
    bfloat16, scores of 60 are wrong by 0.25."""
    monkeypatch.setattr(op.F, "scaled_dot_product_attention", None)
    qkv = make((1, 2, 16, 4, 5), torch.bfloat16, "channels_last", spread=4.0)
    assert_same_as_definition(reference, qkv, 2, factor=2)
    y = reference(qkv, 2)
    assert y.stride() == y.contiguous(memory_format=torch.channels_last).stride()
    (grad,) = torch.autograd.grad(y.square().sum(), qkv, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), qkv)  # which torch's has not
    assert second.isfinite().all()
    assert second.any()
    with pytest.raises(TypeError):
        reference(make((1, 1, 16, 1, op.SHORT + 1), torch.bfloat16, "contiguous"), 1)
