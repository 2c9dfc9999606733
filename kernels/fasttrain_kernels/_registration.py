"""One registration for every op: `torch.library.custom_op` where a graph is followed, Python's own
`autograd.Function` where tensors have values.

`torch.compile`, fake tensors, the meta device and dispatch modes need an op that they can keep
whole, with a fake that knows its result's shape; the profiler needs its name. Elsewhere the
dispatcher's way to a custom op costs several times what the launch itself does (kernels/README.md
has the microseconds), so there the function is called as it is, under an `autograd.Function` if a
gradient may be asked for.

    @op("double", fake=lambda x: torch.empty_like(x), gradients=_gradients, context=_save)
    def _double(x: Tensor) -> Tensor:
        ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

__all__ = ["Op", "followed", "op"]


def followed(x: Tensor) -> bool:
    """Whether an op must be whole now: a graph is compiled, x has no values, or a mode or profiler
    looks at operators by their names."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._autograd._profiler_enabled()
        or x.is_meta
        or is_fake(x)
    )


def _save_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


class Op:
    """A registered op: called like its function.

    custom: the same for graphs. function: its `autograd.Function`, None without gradients.
    written: places of the arguments that it writes to.
    """

    def __init__(
        self, run: Callable[..., Any], custom: Any, function: Any, written: tuple[int, ...]
    ) -> None:
        self.run, self.custom, self.function, self.written = run, custom, function, written

    def __call__(self, *inputs: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.custom(*inputs)
        tensors = _tensors(inputs)
        if followed(tensors[0]):
            return self.custom(*inputs)
        for place in self.written:
            torch.autograd.graph.increment_version(_tensors(inputs[place : place + 1]))
        if (
            self.function is not None
            and torch.is_grad_enabled()
            and any(x.requires_grad for x in tensors)
        ):
            return self.function.apply(*inputs)
        return self.run(*inputs)


def _tensors(inputs: Iterable[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for x in inputs:
        if isinstance(x, Tensor):
            found.append(x)
        elif isinstance(x, (list, tuple)) and x and isinstance(x[0], Tensor):
            found += x
    return found


def op(
    name: str,
    *,
    fake: Callable[..., Any] | None = None,
    gradients: Callable[..., Any] | None = None,
    context: Callable[..., None] = _save_nothing,
    written: tuple[str, ...] = (),
) -> Callable[[Callable[..., Any]], Op]:
    """Register a function as ``fasttrain::name``.

    Args:
        fake: allocates the results; of the function's arguments. None: there are none.
        gradients: `gradients(ctx, *output_gradients)`, a gradient for each argument or None. Grad
            mode is on in it exactly under create_graph: then it must be made of differentiable
            operations, for a kernel's result is a constant to the next derivative.
        context: `context(ctx, arguments, output)` keeps what `gradients` reads.
        written: names of the arguments that are written to.
    """

    def register(run: Callable[..., Any]) -> Op:
        custom = torch.library.custom_op(f"fasttrain::{name}", run, mutates_args=written)
        if fake is not None:
            custom.register_fake(fake)
        function = None
        if gradients is not None:
            custom.register_autograd(gradients, setup_context=context)

            # In one: a `setup_context` of its own has torch bind the arguments by name, in Python.
            def forward(ctx: Any, *inputs: Any) -> Any:
                output = run(*inputs)
                context(ctx, inputs, output)
                return output

            methods = {"forward": staticmethod(forward), "backward": staticmethod(gradients)}
            function = type(f"fasttrain_{name}", (torch.autograd.Function,), methods)
        names = run.__code__.co_varnames
        return Op(run, custom, function, tuple(names.index(argument) for argument in written))

    return register
