"""What a function launches on a GPU, in order, found on the meta device: nothing is computed.

Operators of torch are seen by a dispatch mode, Triton's kernels where `dispatch.launch` is called.
Views, allocations and what only the host does launch nothing.

    with Trace() as trace:
        loss.backward()
    len(trace.launches)
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from fasttrain_kernels import _registration, in_channels_last

__all__ = ["Held", "Launch", "Trace", "fused_attention"]

VIEWS = frozenset(
    (
        *("view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "t"),
        *("expand", "slice", "select", "narrow", "split", "split_with_sizes", "unbind", "chunk"),
        *("unsqueeze", "squeeze", "detach", "alias", "as_strided", "unfold", "diagonal"),
        *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
        *("empty_permuted", "lift_fresh", "resize_", "set_"),
    )
)
"""Operators that launch nothing."""
SEVERAL = {"convolution_backward": 2, "native_group_norm": 2, "native_group_norm_backward": 3}
"""Kernels of an operator, where it is not one."""
JOINED = 64
"""Tensors that one kernel joins at most; twice as many where all are contiguous."""


class Held(NamedTuple):
    """What is kept of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    size: int

    @classmethod
    def of(cls, t: Tensor) -> Held:
        return cls(tuple(t.shape), t.dtype, _size(t))


@dataclass(frozen=True)
class Launch:
    """One kernel. bytes: of its distinct inputs and its outputs; flops: two to a multiply-add, of
    products of the tensor cores; dtype: of its first input. `kernel`: Triton's function, with its
    grid and its arguments."""

    name: str
    bytes: int
    flops: int
    dtype: torch.dtype
    shapes: tuple[tuple[int, ...], ...]
    kernel: Any = None
    grid: tuple[int, ...] = ()
    arguments: dict[str, Any] | None = None
    tf32: bool = False
    """Whether a float32 product may be rounded to TF32."""


class Trace(TorchDispatchMode):
    """Records launches; `launches` has them.

    from_host: operators that read or make tensors of the CPU. What reads a value (`.item()`,
    `nonzero`) is an error on the meta device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: list[Launch] = []
        self.from_host: list[str] = []
        self._restore: list[Callable[[], None]] = []

    def __enter__(self) -> Self:
        def put(module: Any, name: str, value: Any) -> None:
            before = getattr(module, name)
            self._restore.append(lambda: setattr(module, name, before))
            setattr(module, name, value)

        put(_registration, "followed", lambda x: False)  # ops run as on a GPU
        for name, module in list(sys.modules.items()):
            if name.startswith("fasttrain_kernels."):
                if hasattr(module, "launch"):
                    put(module, "launch", self._launched)
                if hasattr(module, "followed") and module is not _registration:
                    put(module, "followed", lambda x: False)
        super().__enter__()
        _traces.append(self)
        return self

    def __exit__(self, *error: Any) -> None:
        _traces.remove(self)
        super().__exit__(*error)
        for restore in reversed(self._restore):
            restore()
        self._restore.clear()

    def _launched(self, kernel: Any, grid: tuple[int, ...], **arguments: Any) -> None:
        tensors = [a for a in arguments.values() if isinstance(a, Tensor)]
        function = getattr(kernel, "fn", kernel)  # without Triton it is not wrapped
        self.launches.append(
            Launch(
                function.__module__.rpartition(".")[2].strip("_") + "." + function.__name__,
                sum(map(_size, tensors)),
                0,
                tensors[0].dtype,
                tuple(tuple(t.shape) for t in tensors),
                kernel,
                grid,
                # No tensors: a gradient that is held elsewhere would be copied where it is kept.
                {k: Held.of(v) if isinstance(v, Tensor) else v for k, v in arguments.items()},
            )
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if "convolution" in str(func):
            out = tree_map(partial(_as_cudnn, like=args[:2]), out)
        name = func._schema.name.removeprefix("aten::")
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        places = {t.device.type for t in (*inputs, *outputs) if t.numel()}
        if places == {"cpu"}:
            return out  # the host's own arithmetic
        if "cpu" in places:
            self.from_host.append(name)  # a copy that waits, and that no graph can capture
        if name in VIEWS or not any(t.numel() for t in outputs):
            return out
        own = {t.untyped_storage()._cdata for t in inputs}
        distinct = {id(t): t for t in inputs}
        packet = func._overloadpacket
        flops = 0
        if packet in flop_registry:
            flops = flop_registry[packet](*args, **kwargs, out_val=out)
        written = [t for t in outputs if t.untyped_storage()._cdata not in own or name[-1] == "_"]
        moved = sum(map(_size, distinct.values())) + sum(map(_size, written))
        dtype = (inputs or outputs)[0].dtype
        shapes = tuple(tuple(t.shape) for t in (*inputs, *outputs))
        several = SEVERAL.get(name, 1)
        if name in ("cat", "stack"):
            several = -(-len(inputs) // JOINED)
        for part in range(several):
            work = (moved, flops) if part == 0 else (0, 0)
            self.launches.append(Launch(name, *work, dtype, shapes, tf32=_tf32(name)))
        return out


def _tf32(name: str) -> bool:
    backends = torch.backends
    switch: Any = backends.cudnn if "convolution" in name else backends.cuda.matmul
    return bool(switch.allow_tf32)


def _size(t: Tensor) -> int:
    """Bytes of a tensor's distinct elements: what is expanded is read once."""
    count = 1
    for size, stride in zip(t.shape, t.stride(), strict=True):
        count *= size if stride or size <= 1 else 1
    return count * t.element_size()


def _as_cudnn(out: Any, like: tuple[Tensor, ...]) -> Any:
    """A convolution's result in channels_last if an input is, as on a GPU; on the meta device it
    would be contiguous."""
    if isinstance(out, Tensor) and out.dim() == 4 and any(in_channels_last(t) for t in like):
        return torch.empty_like(out, memory_format=torch.channels_last)
    return out


def _sdpa(name: str, products: int, *tensors: Tensor) -> Tensor:
    """Records torch's fused attention: `products` of S x S x D."""
    q = tensors[0]
    out = torch.empty_like(q)
    mode = next(m for m in reversed(_traces) if isinstance(m, Trace))
    flops = 2 * products * q.numel() * tensors[1].shape[2]
    moved = sum(map(_size, tensors)) + _size(q)
    mode.launches.append(
        Launch(name, moved, flops, q.dtype, tuple(tuple(t.shape) for t in tensors))
    )
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return _sdpa("attention", 2, q, k, v)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        q, k, v = ctx.saved_tensors
        dq = _sdpa("attention_backward", 5, q, k, v, grads[0], q)
        return dq, torch.empty_like(k), torch.empty_like(v)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """In place of `scaled_dot_product_attention`, which has no fused form on the meta device."""
    result: Tensor = _Attention.apply(q, k, v)
    return result


_traces: list[Trace] = []
