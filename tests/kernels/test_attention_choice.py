"""What attention runs: one op in a compiled graph, the fastest kernel of a GPU, SDPA where Triton's
cannot, and products on a CPU."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch

from fasttrain_kernels import attention, attention_reference, using
from tests.kernels.attention_definition import (
    LAYOUTS,
    assert_same_as_definition,
    definition,
    make,
    op,
    reference,
    triton_op,
)
from tests.kernels.support import DEVICE, recorder, relative_error


def test_compiled_graphs_hold_the_op_whole() -> None:
    graphs: list[list[str]] = []
    qkv = make((1, 2, 16, 3, 3), torch.float32, "channels_last")
    expected = torch.autograd.grad(triton_op(qkv, 2).square().sum(), qkv)[0]
    for backend in (recorder(graphs), "aot_eager"):
        torch._dynamo.reset()
        compiled = torch.compile(triton_op, fullgraph=True, backend=backend)
        got = torch.autograd.grad(compiled(qkv, 2).square().sum(), qkv)[0]
        torch.testing.assert_close(got, expected)
    called = [name for graph in graphs for name in graph]
    assert called.count("fasttrain.attention.default") == 1
    assert called.count("fasttrain.attention_backward.default") == 1
    assert not any("clone" in name for name in called)


def test_a_compiled_choice_breaks_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a GPU, whose name Dynamo cannot ask for."""
    monkeypatch.setattr(op, "resolve", lambda impl, tensor: "triton")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    qkv = make((1, 2, 16, 3, 3), torch.float32, "channels_last").detach()
    for choice in ("triton", "sdpa"):
        monkeypatch.setattr(op, "MEASURED", {("H100", 9, 16, "float32"): choice})
        torch._dynamo.reset()
        graphs: list[list[str]] = []
        compiled = torch.compile(attention, fullgraph=True, backend=recorder(graphs))
        torch.testing.assert_close(compiled(qkv, heads=2), definition(qkv, 2))
        assert (choice == "triton") == any(
            "fasttrain.attention.default" in graph for graph in graphs
        )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_registration_is_sound(layout: str) -> None:
    qkv = make((2, 2, 16, 3, 3), torch.float32, layout)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(op._forward.custom, (qkv, 2), test_utils=tests)
    y, lse = op._forward(qkv.detach(), 2)
    arguments = (torch.randn_like(y), qkv.detach(), y, lse)
    torch.library.opcheck(op._backward.custom, arguments, test_utils=tests)


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
        (
            {"qkv": torch.zeros(1, 3 * 256, 2, 2, device=DEVICE), "impl": "triton"},
            "at most 128 channels, got 256",
        ),
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

    def on_cpu(shape: tuple[int, ...], layout: str) -> torch.Tensor:
        return make(shape, torch.bfloat16, layout, spread=4.0).detach().cpu().requires_grad_()

    qkv = on_cpu((1, 2, 16, 4, 5), "channels_last")
    assert_same_as_definition(reference, qkv, 2, factor=2)
    y = reference(qkv, 2)
    assert y.stride() == y.contiguous(memory_format=torch.channels_last).stride()
    (grad,) = torch.autograd.grad(y.square().sum(), qkv, create_graph=True)
    (second,) = torch.autograd.grad(grad.square().sum(), qkv)  # which torch's has not
    assert second.isfinite().all()
    assert second.any()
    with pytest.raises(TypeError):
        reference(on_cpu((1, 1, 16, 1, op.SHORT + 1), "contiguous"), 1)
