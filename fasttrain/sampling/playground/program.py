"""A U-Net as a list of operators on one image, with a place in memory for every tensor: what the
page's WebAssembly runs.

    weights = Weights()
    program = compile_network(network, info, weights)       # its plain form, run once
    json.dumps(program.to_json(weights))                    # [["conv", "a0", "w12", ...], ...]

The network's plain form (`Network.plain`) makes one image while every operator of PyTorch's is
noted. What depends on weights alone is a constant; reshapes and slices become addresses; the rest
is one of a dozen operators (`operators`), each a function of `web/kernels.c`. An address is `a`
(activations) or `w` (weights) and a number of float32 values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from fasttrain.models.export.pipeline import network_arguments
from fasttrain.models.files.model_file import ModelInfo
from fasttrain.sampling.playground.memory import Buffer, Ref, Weights, place
from fasttrain.sampling.playground.operators import OPERATORS
from fasttrain.sampling.playground.writer import Unsupported, Value, Writer
from fasttrain.settings.registry import load
from fasttrain.system.errors import UserError

__all__ = ["Program", "compile_network"]


SHAPED = ("new_full", "new_ones", "new_zeros", "ones_like", "zeros_like")
"""Operators that take a shape from their input, and no value."""


@dataclass
class Program:
    """Instructions in order; inputs are x [C, H, W], the noise label [1] and the one-hot class.

    Attributes:
        code: [operator, argument, ...]; an argument is a number, a `Ref` or a constant tensor.
        size: float32 values of the activations.
    """

    inputs: list[Ref]
    output: Ref
    code: list[list[Any]]
    size: int

    @property
    def multiplications(self) -> int:
        """Of its convolutions, which take nearly all of its time."""
        return sum(
            math.prod((line[6], line[9], line[10], line[10], *line[-2:]))
            for line in self.code
            if line[0] == "conv"
        )

    def to_json(self, weights: Weights) -> dict[str, Any]:
        """With addresses for references, once all weights are known."""

        def address(x: Any) -> Any:
            if isinstance(x, Ref):
                return f"a{x.buffer.offset + x.offset}"
            return f"w{weights.offset(x)}" if isinstance(x, Tensor) else x

        return {
            "inputs": [address(x) for x in self.inputs],
            "output": address(self.output),
            "code": [[address(x) for x in line] for line in self.code],
            "size": self.size,
        }


def compile_network(network: Any, info: ModelInfo, weights: Weights) -> Program:
    """The program of a preconditioned network's inner network.

    Raises UserError when it has no plain form, or one with an operator that the page lacks.
    """
    plain = network.model.plain()
    kind = info.network.model_type
    if plain is None:
        raise UserError(f"{info.name}: a {kind} has no form that runs in a browser, U-Nets have")
    if info.network.prediction.learned_variance:
        raise UserError(f"{info.name}: its network makes a variance, too, which the page does not")
    module: nn.Module = load(f"{plain.parts[-1]}:build_plain")(**network_arguments(info))
    own = {n.removeprefix("model."): w for n, w in network.state_dict().items()}
    module.load_state_dict({name: own[name].float() for name in module.state_dict()})
    size, channels = info.network.img_resolution, info.network.img_channels
    inputs = [torch.ones(1, channels, size, size), torch.ones(1)]
    if info.network.label_dim:
        inputs.append(torch.ones(1, info.network.label_dim))
    try:
        return _trace(module.requires_grad_(False).eval(), inputs, weights)
    except Unsupported as error:
        raise UserError(f"{info.name}: the page cannot run this {kind}: {error}") from None


@torch.no_grad()
def _trace(module: nn.Module, inputs: list[Tensor], weights: Weights) -> Program:
    tracer = Tracer(inputs)
    with tracer, sdpa_kernel(SDPBackend.MATH):  # attention as matrix products and a softmax
        out = module(*inputs)
    writer, first = tracer.writer, [tracer.value(x).ref for x in inputs]
    result = writer.contiguous(tracer.value(out))
    assert isinstance(result, Value)
    code = [[weights.add(x) if isinstance(x, Tensor) else x for x in line] for line in writer.code]
    code = _fused(code)
    return Program(first, result.ref, code, place(code, first, result.ref))


class Tracer(TorchDispatchMode):
    """Notes what happens to the inputs, and to all that depends on them."""

    def __init__(self, inputs: list[Tensor]) -> None:
        super().__init__()
        self.writer = Writer()
        self.buffers: dict[int, Buffer | None] = {}
        """Storage -> its buffer, or None for a result that the page does not compute."""
        self.alive: list[Any] = []
        """All results, so that no storage is used again."""
        for x in inputs:
            self._hold(x, self.writer.new(x.shape))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Otherwise PyTorch imports its compiler, in seconds, to keep it away from here."""
        return False

    def value(self, x: Tensor) -> Value:
        buffer = self.buffers.get(_storage(x))
        if buffer is None:
            raise Unsupported("its images do not depend on their latents")
        return Value(buffer, x)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.alive.append(result)
        sources = [x for x in tree_leaves((args, kwargs)) if self._depends(x)]
        outs = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        if not sources or all(_storage(x) in self.buffers for x in outs):
            return result  # a constant, or another view
        name = func.overloadpacket.__name__
        if name in SHAPED:
            return result
        if name not in OPERATORS or func._schema.is_mutable:
            raise Unsupported(f"it needs {name}")
        args, kwargs = tree_map(lambda x: self._seen(x), (args, kwargs))
        written = OPERATORS[name](self.writer, outs[0].shape, *args, **kwargs)
        if not outs[0].is_contiguous():
            ordered, written = written, Value(Buffer(outs[0].numel()), outs[0])
            self.writer.copy(ordered, written)
        self._hold(outs[0], written)
        for other in outs[1:]:
            self.buffers[_storage(other)] = None
        return result

    def _hold(self, x: Tensor, written: Value) -> None:
        self.alive.append(x)
        self.buffers[_storage(x)] = written.buffer

    def _depends(self, x: Any) -> bool:
        return isinstance(x, Tensor) and _storage(x) in self.buffers

    def _seen(self, x: Any) -> Any:
        return self.value(x) if self._depends(x) else x


def _storage(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)


def _fused(code: list[list[Any]]) -> list[list[Any]]:
    """SiLU in one go with the group norm before it, where nothing else reads what that writes."""
    uses: dict[Buffer, list[int]] = {}
    for step, line in enumerate(code):
        for buffer in {x.buffer for x in line if isinstance(x, Ref)}:
            uses.setdefault(buffer, []).append(step)
    gone = set()
    for step, line in enumerate(code):
        if line[0] != "silu":
            continue
        maker, *rest = uses[line[1].buffer]
        if code[maker][0] == "group_norm" and rest == [step] and code[maker][4] == line[1]:
            code[maker][4], code[maker][-1] = line[2], 1
            gone.add(step)
    return [line for step, line in enumerate(code) if step not in gone]
