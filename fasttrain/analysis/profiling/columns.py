"""The compared implementations, as columns: the same network with the same weights, each with other
operators.

`eager` is the plain chain, operator by operator. It omits unnecessary work of the published code
(attention scores in float32, a product with a skip scale of 1), so that it is the stronger
baseline. `library` uses the best ready-made operators of torch, `compile` passes that to
torch.compile, `ours` is the network of `fasttrain finetune`.

    with column.operators():
        images = column_network(noise, sigma)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fasttrain.models.build import activation_dtype, memory_format, new_network, prepare_network
from fasttrain.models.freezing import select_trained
from fasttrain.models.networks import conv, layers, unet_block
from fasttrain.settings import FinetuneSettings
from fasttrain_kernels import group_norm_reference, using

__all__ = ["EAGER", "LIBRARY", "Column", "columns_for", "random_weights"]

Pair = tuple[int, int]


LAYERS = (conv, layers, unet_block)
"""The files whose layers call the operators that a column may replace."""


@dataclass(frozen=True)
class Column:
    """`patches`: replacements of names in the files of `LAYERS` while the column runs."""

    name: str
    what: str
    kernels: Literal["auto", "triton", "reference"] = "reference"
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    compiled: bool = False
    recompute_norms: bool = False
    patches: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    @contextmanager
    def operators(self) -> Iterator[None]:
        """Inside, networks run on this column's operators; enter it around the backward too."""
        # A name that a file does not have is not an operator of its layers.
        before = {
            (file, name): getattr(file, name)
            for file in LAYERS
            for name in self.patches
            if hasattr(file, name)
        }
        for file, name in before:
            setattr(file, name, self.patches[name])
        try:
            yield
        finally:
            for (file, name), function in before.items():
                setattr(file, name, function)

    def network(
        self,
        weights: Mapping[str, Tensor],
        settings: FinetuneSettings,
        device: torch.device,
        **changes: Any,
    ) -> Any:
        """The generator of the settings, prepared to train on the device. Frozen weights share the
        storage of `weights` unless they need another dtype or layout. changes: to the settings."""
        changes = {
            "kernels": self.kernels,
            "memory_format": self.memory_format,
            "compile": self.compiled,
            "recompute_norms": self.recompute_norms,
            **changes,
        }
        settings = settings.model_copy(update=changes)
        with torch.device("meta"):
            network = new_network("one_step", settings.network)
        network.load_state_dict(dict(weights), assign=True)
        select_trained(network, settings)
        for parameter in network.parameters():
            if parameter.requires_grad:  # each column trains its own
                parameter.data = parameter.data.clone()
        prepare_network(network, settings, device)
        forward = network.forward

        def on_own_kernels(*args: Any) -> Any:
            with using(settings.kernels):  # the discriminator runs on the run's in every column
                return forward(*args)

        network.forward = on_own_kernels
        return network.eval()


def columns_for(
    settings: FinetuneSettings, device: torch.device, compiled: bool
) -> tuple[Column, ...]:
    """The columns that differ from each other on this device, `eager` first and `ours` last."""
    eager = Column(
        "eager",
        "plain operators: norm in float32 between two casts, modulation, SiLU and sums apart, the "
        "S x S attention matrix with softmax in float32, contiguous",
        memory_format="contiguous",
        patches=EAGER,
    )
    library = Column(
        "library",
        "torch's own fused operators: group_norm in the activations' dtype, SDPA",
        memory_format=settings.memory_format,
        patches=LIBRARY,
    )
    columns = [eager, library]
    if memory_format(settings, device) == torch.channels_last:
        what = f"{library.what}, contiguous"
        columns.append(Column("library_nchw", what, "reference", "contiguous", patches=LIBRARY))
    if compiled:
        columns.append(
            Column(
                "compile",
                "library, under torch.compile",
                memory_format=settings.memory_format,
                compiled=True,
                patches=LIBRARY,
            )
        )
    what = "the network of `fasttrain finetune`"
    if activation_dtype(settings, device) != torch.float32:
        what += f", kernels={settings.kernels}"
    ours = Column(
        "ours",
        what,
        settings.kernels,
        settings.memory_format,
        settings.compile,
        settings.recompute_norms,
    )
    return (*columns, ours)


def random_weights(
    settings: FinetuneSettings, device: torch.device, seed: int = 0
) -> dict[str, Tensor]:
    """State of a new generator without weights of zero or nearly zero, so that every path carries
    values: time and power depend on them, and a wrong path must be detected."""
    torch.manual_seed(seed)
    with torch.device(device):
        network: nn.Module = new_network("one_step", settings.network)
        with torch.no_grad():
            for parameter in network.parameters():
                deviation = max(parameter[0].numel(), 1) ** -0.5
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter), alpha=0.1)
                elif float(parameter.std()) < 0.01 * deviation:
                    parameter.copy_(torch.randn_like(parameter) * deviation)
    return {name: value.detach() for name, value in network.state_dict().items()}


# ---------------------------------------------------------------------------- what the columns run


def _group_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    groups: int,
    eps: float = 1e-5,
    shift_in: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str = "silu",
    statistics: Tensor | None = None,
    fork: bool = False,
    impl: str = "reference",
    dtype: torch.dtype = torch.float32,
) -> Any:
    """Separate operators, the norm itself in `dtype`."""
    before = x
    if shift_in is not None:
        x = x + shift_in[:, :, None, None]
    weight, bias = (None if t is None else t.to(dtype) for t in (weight, bias))
    y = F.group_norm(x.to(dtype), groups, weight, bias, eps).to(x.dtype)
    if scale is not None:
        y = y * (scale[:, :, None, None] + 1)
    if shift is not None:
        y = y + shift[:, :, None, None]
    y = F.silu(y) if activation == "silu" else y
    return (y, before) if fork else y


def _library_norm(x: Tensor, *parameters: Any, fork: bool = False, **options: Any) -> Any:
    """torch's norm without casts; in float32 this is the reference, which folds the modulation into
    weight and bias."""
    if x.dtype != torch.float32:
        y = _group_norm(x, *parameters, dtype=x.dtype, **options)
    else:
        options = {name: v for name, v in options.items() if name not in ("impl", "statistics")}
        y = group_norm_reference(x, *parameters, **options)
    return (y, x) if fork else y


def _attention(qkv: Tensor, *, heads: int, impl: str = "reference") -> Tensor:
    """With the S x S matrix in memory: products in the activations' dtype, softmax in float32."""
    samples, channels, height, width = qkv.shape
    shape = (samples, 3, heads, channels // (3 * heads), height * width)
    q, k, v = qkv.reshape(shape).unbind(1)
    scores = torch.einsum("nhdq,nhdk->nhqk", q, k / q.shape[2] ** 0.5)
    weights = scores.float().softmax(dim=-1).to(v.dtype)
    return torch.einsum("nhqk,nhdk->nhdq", weights, v).reshape(samples, -1, height, width)


def _residual_scale(
    branch: Tensor,
    residual: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float = 1.0,
    statistics: bool = False,
    impl: str = "reference",
) -> Any:
    y = branch if bias is None else branch + bias.to(branch.dtype)[:, None, None]
    y = y + residual
    y = y if scale == 1 else y * scale
    return (y, None) if statistics else y


def _resample2d(
    x: Tensor, mode: str, *, taps: tuple[int, ...] = (1, 1), impl: str = "reference"
) -> Tensor:
    """A depthwise convolution with the filter."""
    row = torch.tensor(taps, dtype=x.dtype, device=x.device) / sum(taps)
    weight = torch.outer(row, row).expand(x.shape[1], 1, -1, -1)
    padding, groups = len(taps) // 2 - 1, x.shape[1]
    if mode == "up":
        return F.conv_transpose2d(x, 4 * weight, stride=2, padding=padding, groups=groups)
    return F.conv2d(x, weight, stride=2, padding=padding, groups=groups)


def _conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, padding: Pair = (0, 0)
) -> Tensor:
    """torch's convolution, which keeps its input although the weight is constant."""
    return F.conv2d(x, weight, bias, padding=padding)


LIBRARY: dict[str, Callable[..., Any]] = {
    "group_norm": _library_norm,
    "frozen_conv2d": _conv2d,
}
EAGER: dict[str, Callable[..., Any]] = {
    "group_norm": _group_norm,
    "attention": _attention,
    "residual_scale": _residual_scale,
    "resample2d": _resample2d,
    "frozen_conv2d": _conv2d,
}
