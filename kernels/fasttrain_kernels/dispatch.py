"""Which implementation of an op runs: decided here and nowhere else.

Every op of the package takes `impl`:

- ``"auto"``: the Triton kernel for a CUDA tensor of a dtype that the kernels take, else the
  reference. This is what a network uses.
- ``"triton"``: the Triton kernel, or an error that says why it cannot run. On a CPU tensor it runs
  under Triton's interpreter, which ``TRITON_INTERPRET=1`` switches on (slow: for tests).
- ``"reference"``: plain torch, on every device and in every dtype.

Both give the same result within the tolerance that the op states::

    if resolve(impl, x) == "triton":
        return launch(x)
    return op_reference(x)

`using` says what ``"auto"`` means for a while, in all threads::

    with using("reference"):  # nothing launches Triton, whoever calls an op
        train(...)

Triton has no wheel for some platforms (macOS). There the module still imports, the kernels are
plain undecorated functions that nobody calls, and the reference does the work.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from types import SimpleNamespace
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

__all__ = [
    "HAVE_TRITON",
    "INTERPRETED",
    "KERNEL_DTYPES",
    "ROCM",
    "Impl",
    "constants",
    "in_channels_last",
    "launch",
    "on_cpu",
    "resolve",
    "scope",
    "tl",
    "triton",
    "using",
]

Impl = Literal["auto", "triton", "reference"]

triton: Any
tl: Any
try:
    triton = import_module("triton")
    tl = import_module("triton.language")
    HAVE_TRITON = True
except ImportError:
    HAVE_TRITON = False
    triton = SimpleNamespace(jit=lambda function=None, **_: function or (lambda inner: inner))
    tl = None  # only named inside kernels and their annotations, which are strings

# Triton decides when a kernel is decorated, so that a later change of the variable has no effect.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

ROCM = torch.version.hip is not None
"""Whether this torch is for AMD's GPUs, whose compiler takes fewer launch options."""

_scope: Impl = "auto"


@contextmanager
def using(impl: Impl) -> Iterator[None]:
    """What ``impl="auto"`` means within, in every thread of this process; ``"auto"`` changes
    nothing. An op that is asked for another `impl` by name runs that.

    ``"triton"`` is the kernel wherever the op has one for its arguments, and an error on a CPU
    without the interpreter. A scope is the process's, for a context variable would not reach the
    threads of autograd: enter it from one thread at a time.

    Raises ValueError when `impl` is none of the three names.
    """
    global _scope
    _check(impl)
    before = _scope
    if impl != "auto":
        _scope = impl
    try:
        yield
    finally:
        _scope = before


def scope() -> Impl:
    """What ``impl="auto"`` means now; ``"auto"`` itself outside of `using`."""
    return _scope


def _check(impl: str) -> None:
    if impl not in get_args(Impl):
        names = ", ".join(repr(name) for name in get_args(Impl))
        raise ValueError(f"unknown implementation {impl!r}: impl is one of {names}")


def resolve(impl: Impl, tensor: Tensor) -> Literal["triton", "reference"]:
    """The implementation that runs for `tensor`; `using` says what ``"auto"`` means.

    Raises:
        ValueError: `impl` is none of the three names; or ``"triton"`` is asked for where it cannot
            run: not installed, a CPU tensor without the interpreter, a dtype without a kernel; or
            `torch.autocast` is on, which would give an op's inputs different dtypes.
    """
    kind = tensor.device.type
    if kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind):
        raise ValueError(
            "torch.autocast is on, but these ops compute in the dtype of their input: "
            "cast that instead, or wrap them in torch.autocast(device_type, enabled=False)"
        )
    if impl == "auto" and _scope != "auto":
        impl = _scope if tensor.dtype in KERNEL_DTYPES else "reference"
    if impl == "reference":
        return "reference"
    if impl == "auto":
        runs = HAVE_TRITON and tensor.is_cuda and tensor.dtype in KERNEL_DTYPES
        return "triton" if runs else "reference"
    _check(impl)
    if not HAVE_TRITON:
        raise ValueError("impl='triton' needs triton, which is not installed: use impl='auto'")
    if tensor.dtype not in KERNEL_DTYPES:
        raise ValueError(
            f"impl='triton' takes float32, bfloat16 or float16, got {tensor.dtype}: "
            "use impl='reference'"
        )
    if not tensor.is_cuda and not INTERPRETED:
        raise ValueError(
            f"impl='triton' needs a CUDA tensor, got one on {tensor.device}: use impl='auto', "
            "or set TRITON_INTERPRET=1 before the import to run the kernel in the interpreter"
        )
    return "triton"


def constants(values: Sequence[float], x: Tensor) -> Tensor:
    """Values as a tensor with the dtype and device of x, filled in there: a copy from the host is
    waited for, and no CUDA graph captures it."""
    return torch.stack([x.new_full((), value) for value in values])


def launch(kernel: Any, grid: tuple[int, ...], **arguments: Any) -> None:
    """Run a Triton kernel, by the names of its arguments and launch options, on the device of its
    first tensor. Products and sums may be fused (`fma`), said outright, for Triton's default is a
    variable of the environment."""
    on = next(argument for argument in arguments.values() if isinstance(argument, Tensor))
    with torch.cuda.device_of(on):
        kernel[grid](**arguments, enable_fp_fusion=True)


def on_cpu(x: Tensor) -> bool:
    """Whether a CPU computes with this tensor now. Where only shapes are followed (a fake tensor,
    which stands for a GPU's, or a graph that is being compiled) the usual code counts."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling() and not is_fake(x)


def in_channels_last(x: Tensor) -> bool:
    """Whether the channels of x lie side by side in memory, [N, H, W, C]. What is both that and
    contiguous, such as a map of one pixel, counts as contiguous."""
    if x.dim() != 4 or x.is_contiguous():
        return False
    return x.is_contiguous(memory_format=torch.channels_last)
