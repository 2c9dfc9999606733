"""Counted costs of operators: the class of each, the bytes it must move, its operations, and the
memory that a forward pass keeps for the backward pass.

    with OperatorCount() as count:
        loss.backward()
    count.by_class()["norm"].bytes

Bytes are the least that an operator must read and write: each distinct input tensor once, each
output once, nothing for a view. An operator that reads its input twice, or spills to memory, moves
more; one whose input is still in the cache moves less. Operations are those of
`torch.utils.flop_counter`: matrix products, convolutions and attention, two to a multiply-add.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry

__all__ = [
    "CLASSES",
    "Cost",
    "OperatorCount",
    "Saved",
    "attention_product",
    "bytes_moved",
    "class_of",
    "kept",
]

_TABLE = {
    "norm": r"\w*(group|batch|layer)_norm\w*",
    # The class projection of the discriminator's heads is a (tiny) bmm, too.
    "attention": r"attention\w*|\w*_attention\w*|(_safe)?_?softmax\w*|bmm|baddbmm",
    "optimizer": r"_fused_adam_|_foreach_\w+|Adam\.step|ema\w*",
    "resampling": r"resample2d\w*|image_prep\w*|\w*upsample\w*|interpolate|\w*pool2d\w*",
    "convolution": r"\w*conv(olution|_transpose|_depthwise|_dilated|)?(2d|3d)?(_\w+)?",
    "matrix product": (
        r"power_iteration|mm|addmm|mv|addmv|dot|vdot|ger|outer|linear|matmul|einsum|cudnn_linear"
    ),
    "memory/copy": (
        r"copy|_?to_copy|to|_to|contiguous|clone|cat|stack|repeat|fill|zero|ones|zeros|full|eye"
        r"|arange|linspace|scalar_tensor|(zeros|ones|full|empty)_(like|strided|permuted)|empty"
        r"|new_\w+|constant_pad_nd|pad|one_hot|item|_local_scalar_dense|is_nonzero|\w*_backward_copy"
        r"|slice_backward|select_backward|lift_fresh|resolve_\w+|_reshape_copy|(un)?fold_backward"
        # views and their bookkeeping, which move no data
        r"|view(_as)?|_unsafe_view|_reshape_alias|reshape|(un)?flatten|t|transpose|permute|movedim"
        r"|expand(_as)?|slice|select|narrow|split\w*|chunk|unbind|(un)?squeeze|detach|alias"
        r"|as_strided|numpy_T|result_type|unsafe_chunk|unsafe_split|set_|resize"
    ),
    "elementwise": (
        r"residual_scale\w*|bias_activation|logit_losses\w*|counter_\w+|sum|mean|var|std|var_mean|any|all|amax|max"
        r"|min|norm|linalg_vector_norm|\w*_norm_except_dim|normalize|\w+_backward|add|sub|rsub|mul"
        r"|div|true_divide|pow|silu|leaky_relu|softplus|softmax_backward|hardtanh|relu6?|sigmoid"
        r"|clamp\w*|where|lerp|addcmul|addcdiv|isfinite|uniform|normal|random|index\w*|embedding\w*"
        r"|bitwise_\w+|__\w+__|floor\w*|remainder|gather|scatter\w*|cumsum|square|sqrt|rsqrt|type_as"
    ),
}
"""The class of an operator by its name without namespace and trailing underscore; the first match
counts. Without a match it is elementwise if torch tags it so, else "other"."""

CLASSES = (
    *("convolution", "matrix product", "attention", "norm", "elementwise", "resampling"),
    *("memory/copy", "optimizer", "other"),
)
"""Classes in the order of reports. "other": operators without a match; in times, also autograd's
work and Python between the operators."""


@cache
def class_of(name: str) -> str:
    """Class of an operator by a name like `aten::add_`, as in the dispatcher and the profiler."""
    namespace, _, base = name.rpartition("::")
    if not namespace and not base.startswith("Optimizer."):
        return "other"  # an autograd node, or a named range
    base = base.removeprefix("Optimizer.step#")
    for kind, pattern in _TABLE.items():
        if re.fullmatch(pattern, base) or re.fullmatch(pattern, base.rstrip("_")):
            return kind
    packet = getattr(getattr(torch.ops, namespace, None), base, None)
    overloads = [] if packet is None else [getattr(packet, o) for o in packet.overloads()]
    pointwise = any(torch.Tag.pointwise in overload.tags for overload in overloads)
    return "elementwise" if pointwise else "other"


# -------------------------------------------------------------------------------- bytes by schema

_ONLY_WRITTEN = re.compile(r"copy_|fill_|zero_|uniform_|normal_|random_|\w*out")
"""In-place operators that do not read what they overwrite."""
_ALLOCATES = re.compile(r"(new_)?empty(_like|_strided|_permuted)?")
_VIEWS = {"_unsafe_view", "detach", "alias", "lift_fresh"}


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def size_of(tensor: Tensor) -> int:
    """Bytes of the distinct values: an expanded tensor is read once."""
    numel = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        numel *= size if stride or not size else 1
    return numel * tensor.element_size()


def bytes_moved(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """Least bytes that a call of an operator must read and write."""
    schema = func._schema
    base = schema.name.rpartition("::")[2]
    if func.is_view or base in _VIEWS or _ALLOCATES.fullmatch(base):
        return 0
    arguments = [*zip(schema.arguments, args, strict=False)]
    arguments += [(argument, kwargs[argument.name]) for argument in schema.arguments[len(args) :]
              if argument.name in kwargs]  # fmt: skip
    values = {argument.name: value for argument, value in arguments}
    unread = _unread(base, values)
    read: dict[Any, int] = {}
    written = 0
    for argument, value in arguments:
        changed = argument.alias_info is not None and argument.alias_info.is_write
        changed = changed and not (base == "_fused_adam_" and argument.name == "grads")
        for tensor in tensors_in(value):
            written += size_of(tensor) if changed else 0
            if argument.name not in unread and not (changed and _ONLY_WRITTEN.fullmatch(base)):
                place = tensor.untyped_storage().data_ptr(), tensor.storage_offset()
                read[*place, tensor.shape, tensor.stride()] = size_of(tensor)
    results = out if isinstance(out, (list, tuple)) and len(schema.returns) > 1 else (out,)
    for returned, value in zip(schema.returns, results, strict=False):
        if returned.alias_info is None:
            written += sum(size_of(tensor) for tensor in tensors_in(value))
    return sum(read.values()) + written


def _unread(base: str, values: dict[str, Any]) -> set[str]:
    """Arguments that an operator need not read."""
    if base != "convolution_backward":
        return set()
    for_input, for_weight, _ = values["output_mask"]
    return {name for name, needed in (("weight", for_input), ("input", for_weight)) if not needed}


# ------------------------------------------------------------------------------------- the counts


@dataclass
class Cost:
    """Cost of an operator; calls: only those that move data."""

    calls: int = 0
    bytes: int = 0
    flops: int = 0

    def __iadd__(self, other: Cost) -> Cost:
        self.calls += other.calls
        self.bytes += other.bytes
        self.flops += other.flops
        return self


class OperatorCount(TorchDispatchMode):
    """Context that counts every operator on its way to the device; `operators`: Cost by name."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: dict[str, Cost] = defaultdict(Cost)
        self.formulas = {**flop_registry, **_own_formulas()}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = self.formulas.get(func.overloadpacket)
        flops = 0 if formula is None else int(formula(*args, **kwargs, out_val=out))
        moved = bytes_moved(func, args, kwargs, out)
        self.operators[func._schema.name] += Cost(int(moved > 0), moved, flops)
        return out

    def by_class(self) -> dict[str, Cost]:
        classes: dict[str, Cost] = defaultdict(Cost)
        for name, cost in self.operators.items():
            classes[class_of(name)] += cost
        return classes

    def total(self) -> Cost:
        total = Cost()
        for cost in self.operators.values():
            total += cost
        return total


def attention_product(qkv: Tensor) -> int:
    """Operations of one of attention's products, queries with keys or weights with values, of the
    qkv convolution's output [N, 3 C, H, W]."""
    samples, channels, height, width = qkv.shape
    return 2 * samples * (channels // 3) * (height * width) ** 2


def _own_formulas() -> dict[Any, Any]:
    """Operations of a convolution with its activation (`relu6_along`), and of fused attention: two
    products of S^2 C multiply-adds a sample forward, five backward (the scores are recomputed), as
    the registry counts SDPA on a GPU."""

    def sdpa(q: Tensor) -> int:
        return 2 * q.numel() * q.shape[-2]

    aten, ops = torch.ops.aten, torch.ops.fasttrain
    cpu, cpu_backward = (
        getattr(aten, f"_scaled_dot_product_flash_attention_for_cpu{end}")
        for end in ("", "_backward")
    )
    found: dict[Any, Any] = {
        cpu: lambda q, *_, out_val=None, **__: 2 * sdpa(q),
        cpu_backward: lambda dy, q, *_, out_val=None, **__: 5 * sdpa(q),
    }
    if hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        found[torch.ops.mkldnn._convolution_pointwise] = lambda x, weight, *_, out_val, **__: (
            conv_flop_count(x.shape, weight.shape, out_val.shape)
        )
    if hasattr(ops, "attention"):
        found[ops.attention] = lambda qkv, *_, out_val=None, **__: 2 * attention_product(qkv)
    if hasattr(ops, "attention_backward"):
        found[ops.attention_backward] = lambda dy, qkv, *_, out_val=None, **__: (
            5 * attention_product(qkv)
        )
    return found


class Saved:
    """Distinct storages that autograd keeps, and their bytes."""

    def __init__(self, ignored: Iterable[Tensor]) -> None:
        self.ignored = {tensor.untyped_storage().data_ptr() for tensor in ignored}
        self.storages: dict[int, Any] = {}

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.ignored:
            self.storages[storage.data_ptr()] = storage  # kept, so that its address is not reused
        return tensor

    @property
    def bytes(self) -> int:
        return sum(storage.nbytes() for storage in self.storages.values())


@contextmanager
def kept(ignored: Iterable[Tensor]) -> Iterator[Saved]:
    """Context that counts the tensors that autograd saves for the backward pass, without `ignored`
    (the parameters). Inputs that checkpointing keeps are not counted."""
    saved = Saved(ignored)
    with torch.autograd.graph.saved_tensors_hooks(saved.add, lambda tensor: tensor):
        yield saved
