"""What the tests of every op share: the device, tolerances, guarded memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fasttrain_kernels.dispatch import in_channels_last

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Relative L2 error, in the dtype that is stored: a few units in the last place of float32, one half
# of one for the others.
TOLERANCE = {
    torch.float32: 3e-6,
    torch.bfloat16: 3e-3,
    torch.float16: 5e-4,
}


def guarded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """`values` on the test device, with their strides (of a dense tensor), and with NaN before and
    after them in memory: a read outside shows."""
    count = values.numel()
    buffer = torch.full((count + 256,), float("nan"), dtype=dtype, device=DEVICE)
    inside = buffer[128 : 128 + count].as_strided(values.shape, values.stride(), 128)
    return inside.copy_(values)


def relative_error(got: Tensor, expected: Tensor) -> float:
    """L2, relative; where the expected values nearly vanish, relative to 0.01 an element."""
    got, expected = got.detach().double(), expected.detach().double()
    floor = 0.01 * max(1, expected.numel()) ** 0.5
    return float((got - expected).norm() / expected.norm().clamp_min(floor))


def assert_matches(
    op: Callable[..., Any], definition: Callable[..., Any], *inputs: Tensor, seed: int = 1
) -> None:
    """Outputs and the gradient of every input that needs one, against the definition in float64;
    the inputs are left as they were, and a second run repeats the first bit for bit."""
    before = [x.detach().clone() for x in inputs]
    exact = [x.detach().double().requires_grad_(x.requires_grad) for x in inputs]
    got, expected = _tuple(op(*inputs)), _tuple(definition(*exact))
    assert len(got) == len(expected)
    generator = torch.Generator().manual_seed(seed)
    seeds = []
    for y, wanted in zip(got, expected, strict=True):
        assert y.shape == wanted.shape
        assert relative_error(y, wanted) < TOLERANCE[y.dtype], relative_error(y, wanted)
        layout = torch.channels_last if in_channels_last(y) else torch.contiguous_format
        dy = torch.randn(y.shape, generator=generator).contiguous(memory_format=layout)
        seeds.append(guarded(dy, y.dtype))
    leaves = [x for x in inputs if x.requires_grad]
    if not leaves:
        return
    grads = torch.autograd.grad(got, leaves, seeds, retain_graph=True)
    wanted_grads = torch.autograd.grad(
        expected, [x for x in exact if x.requires_grad], [dy.double() for dy in seeds]
    )
    for x, grad, wanted in zip(leaves, grads, wanted_grads, strict=True):
        assert grad.dtype == x.dtype
        assert grad.shape == x.shape
        assert relative_error(grad, wanted) < TOLERANCE[grad.dtype], relative_error(grad, wanted)
    for x, was in zip(inputs, before, strict=True):
        assert torch.equal(x, was)
    for first, second in zip(got, _tuple(op(*inputs)), strict=True):
        assert torch.equal(first, second)
    for first, second in zip(grads, torch.autograd.grad(got, leaves, seeds), strict=True):
        assert torch.equal(first, second)


def _tuple(values: Any) -> tuple[Tensor, ...]:
    return (values,) if isinstance(values, Tensor) else tuple(values)


def recorder(graphs: list[list[str]]) -> Any:
    """A backend of torch.compile that adds to `graphs` what each forward and backward graph calls,
    but for getitem and detach."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    def record(graph: Any, _: Any) -> Any:
        names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        graphs.append([n for n in names if "getitem" not in n and "detach" not in n])
        return make_boxed_func(graph.forward)

    return aot_autograd(fw_compiler=record, bw_compiler=record)


def compiled_ops(op: Callable[..., Any], *inputs: Tensor) -> tuple[set[str], set[str]]:
    """The fasttrain ops in the forward and the backward graph that torch.compile makes of `op`,
    whole; the compiled results must equal the plain ones."""
    graphs: list[list[str]] = []
    torch.compiler.reset()
    compiled = torch.compile(op, fullgraph=True, backend=recorder(graphs))
    got, expected = _tuple(compiled(*inputs)), _tuple(op(*inputs))
    leaves = [x for x in inputs if x.requires_grad]
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(
        torch.autograd.grad(sum(y.float().square().sum() for y in got), leaves),
        torch.autograd.grad(sum(y.float().square().sum() for y in expected), leaves),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    forward, backward = (
        {name for name in graph if name.startswith("fasttrain.")} for graph in graphs
    )
    return forward, backward
