"""CUDA graphs of the networks' passes, for the setting `graphs`: one launch instead of hundreds.

A kind of call (its shapes, which inputs and weights have gradients) is captured when it first
comes, forward and backward, by `torch.cuda.make_graphed_callables`, and replayed from then on. A
graph reads and writes the same memory at every replay, so

- inputs are copied into it, but for the weights, which are read where they lie;
- outputs and gradients are copied out of it: gradients add up over micro-batches, and images are
  kept for the discriminator's step;
- a call that comes before the last one of its kind had its backward pass runs as it is, and so do
  calls of too many kinds, and exact R1, which no graph of this kind can differentiate twice.

    capture(network, trained)                   # from now on network(...) replays
    capture(discriminator, heads, twice=True, state=lambda: discriminator.precision)
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fasttrain.system.errors import UserError

__all__ = ["Graphed", "capture", "check_graphs"]

MOST = 8
"""Kinds of calls of a module that are captured; each holds the memory of its activations."""


def check_graphs(device: torch.device, shares_groups: bool) -> None:
    """Raise UserError where passes cannot be captured: on a CPU, or where processes talk within
    them."""
    if device.type != "cuda":
        raise UserError(f"graphs: CUDA graphs need a GPU, and this run is on a {device.type}; "
                        "set graphs to false")  # fmt: skip
    if shares_groups:
        raise UserError(
            "graphs: processes share groups of discriminator.norm_group images, so they exchange "
            "values within a pass; set a smaller discriminator.norm_group, or graphs to false"
        )


def capture(
    module: nn.Module,
    trained: nn.Module | None = None,
    *,
    twice: bool = False,
    state: Callable[[], Hashable] = lambda: None,
) -> Graphed:
    """Let calls of a module replay graphs.

    trained: the part of it with all trained parameters; default: itself. twice: whether a call in
    which inputs and weights have gradients is differentiated twice. state: what else a pass depends
    on.
    """
    graphed = Graphed(module, trained or module, twice, state)
    module.forward = graphed
    return graphed


class Graphed:
    """In the place of a module's `forward`.

    Attributes:
        graphs: by kind of call.
    """

    def __init__(
        self, module: nn.Module, trained: nn.Module, twice: bool, state: Callable[[], Hashable]
    ) -> None:
        self.module, self.plain = module, module.forward
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        self.trained: Mapping[str, nn.Parameter] = {names[id(p)]: p for p in trained.parameters()}
        self.twice, self.state = twice, state
        self.graphs: dict[Hashable, Callable[..., Any]] = {}
        self._pending: set[Hashable] = set()
        self._capturing = False

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if self._capturing or options:
            return self.plain(*arguments, **options)
        with_graph = torch.is_grad_enabled()
        weights = {n: p for n, p in self.trained.items() if with_graph and p.requires_grad}
        tensors = [a for a in arguments if isinstance(a, Tensor)]
        differentiated = with_graph and any(t.requires_grad for t in tensors)
        if self.twice and weights and differentiated:
            return self.plain(*arguments)
        kind = (
            tuple(map(_kind, arguments)),
            with_graph,
            *weights,
            self.module.training,
            self.state(),
        )
        if kind in self._pending or (kind not in self.graphs and len(self.graphs) == MOST):
            return self.plain(*arguments)
        if kind not in self.graphs:
            self.graphs[kind] = self._captured(arguments, tensors, weights)
        if weights or differentiated:
            self._pending.add(kind)
        inputs = [*tensors, *weights.values()]
        places = [k for k, t in enumerate(inputs) if with_graph and t.requires_grad]
        if places:
            done = partial(self._pending.discard, kind)
            owned = _Owned.apply(done, *(inputs[k] for k in places))
            for k, t in zip(places, owned, strict=True):
                inputs[k] = t
        return tree_map(torch.clone, self.graphs[kind](*inputs))

    def _captured(
        self, arguments: tuple[Any, ...], tensors: list[Tensor], weights: Mapping[str, Tensor]
    ) -> Callable[..., Any]:
        """A graph of the call, whose inputs are its tensors, then the weights."""

        def run(*inputs: Tensor) -> Any:
            given = iter(inputs)
            filled = [next(given) if isinstance(a, Tensor) else a for a in arguments]
            values = dict(zip(weights, given, strict=True))
            self._capturing = True
            try:
                return torch.func.functional_call(self.module, values, tuple(filled))
            finally:
                self._capturing = False

        samples = [t.detach().clone().requires_grad_(t.requires_grad) for t in tensors]
        samples += [p.detach().requires_grad_() for p in weights.values()]
        graph: Callable[..., Any] = torch.cuda.make_graphed_callables(
            run, tuple(samples), allow_unused_input=True
        )
        return graph


class _Owned(torch.autograd.Function):
    """The inputs as they are, and back copies of their gradients, which lie in the graph's memory;
    then the graph may run again."""

    @staticmethod
    def forward(ctx: Any, done: Callable[[], None], *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.done = done
        ctx.set_materialize_grads(False)
        return tuple(t.view_as(t) for t in inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        ctx.done()
        copies = iter(torch._foreach_mul([g for g in grads if g is not None], 1.0))
        return None, *(None if g is None else next(copies) for g in grads)


def _kind(argument: Any) -> Hashable:
    if isinstance(argument, Tensor):
        return (argument.shape, argument.dtype, argument.requires_grad)
    return argument
