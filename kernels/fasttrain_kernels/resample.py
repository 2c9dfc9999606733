r"""Doubling and halving the resolution with a separable filter, as the U-Nets do it.

With the taps f of one axis normalised to sum 1, T of them, and p = T / 2 - 1, an axis becomes

    down:  y[o] = sum over t of f[t] x[2 o + t - p]
    up:    y[o] = 2 sum over t of f[t] x[(o + p - t) / 2]      over the t that make this whole

with zeros outside. Taps (1, 1): the mean of 2 x 2 pixels, and each pixel four times; (1, 3, 3, 1):
their smoother sisters, (x[2 o - 1] + 3 x[2 o] + 3 x[2 o + 1] + x[2 o + 2]) / 8 down, and up
(3 x[i] + x[i - 1]) / 4 at 2 i, (3 x[i] + x[i + 1]) / 4 at 2 i + 1. One is the other's adjoint, up
to a factor:

    up^T = 4 down,     down^T = up / 4          (in two dimensions, borders included)

so the backward pass of each is the other, and any order of gradients exists.

    y = resample2d(x, "down", taps=(1, 3, 3, 1))

`upsampled_weight` folds doubling with (1, 1) into the 3 x 3 convolution that follows it. A 1 x 1
convolution needs no such thing: it commutes with both, so it runs on the smaller map. So does its
bias with taps (1, 1). With (1, 3, 3, 1) a part of the filter falls on zeros at the border, and of a
bias that is resampled, too, 3/4 (up) or 7/8 (down) remain in the outermost rows and columns, the
square of it in the corners: there add it last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain_kernels._registration import op
from fasttrain_kernels._resample_kernels import down_kernel, up_kernel
from fasttrain_kernels._tiles import Plan, layout_of, power_of_2
from fasttrain_kernels.dispatch import Impl, constants, in_channels_last, launch, resolve

__all__ = ["Mode", "resample2d", "resample2d_reference", "upsampled_weight"]

Mode = Literal["up", "down"]
KERNEL_TAPS = ((1, 1), (1, 3, 3, 1))


def resample2d_reference(x: Tensor, mode: Mode, *, taps: Sequence[float] = (1, 1)) -> Tensor:
    """Plain torch, any device and floating dtype, any even number of taps, differentiable to any
    order. Computes 16-bit values in float32 and returns x.dtype in the memory format of x."""
    h = x.to(torch.promote_types(x.dtype, torch.float32))
    channels, padding = x.shape[1], len(taps) // 2 - 1
    options: dict[str, Any] = {"stride": 2, "padding": padding, "groups": channels}
    if tuple(taps) == (1, 1):  # the same sums as the depthwise filter, many times faster on a CPU
        y = F.avg_pool2d(h, 2) if mode == "down" else F.interpolate(h, scale_factor=2.0)
    else:
        line = constants(taps, h)
        filters = (torch.outer(line, line) / line.sum() ** 2).expand(channels, 1, -1, -1)
        if mode == "down":
            y = F.conv2d(h, filters, **options)
        else:
            y = F.conv_transpose2d(h, 4 * filters, **options)
    return y.to(x.dtype).contiguous(memory_format=layout_of(x))


# --------------------------------------------------------------------------------------- launcher


def plan(channels: int, pixels: int, itemsize: int, last: bool) -> Plan:
    """The fixed launch rule, read off the compiled kernels (benchmarks/aot.py): nothing spills.
    pixels: of the smaller map. 16 a thread. In channels_last whole cache lines of 128 bytes, and
    64 pixels: several short rows, so that fewer reads go over the tile's edge."""
    if last:
        block_c = min(128 // itemsize, power_of_2(channels))
        block_p = min(64, power_of_2(pixels))
    else:
        block_p = min(512, power_of_2(pixels))
        block_c = min(2048 // block_p, 64, power_of_2(channels))
    return Plan(block_c, block_p, max(1, block_c * block_p // 512))


# ----------------------------------------------------------------------------------- registration


def _allocate(x: Tensor, mode: str, taps: Sequence[int], gain: float) -> Tensor:
    samples, channels, height, width = x.shape
    size = (height * 2, width * 2) if mode == "up" else (height // 2, width // 2)
    layout = layout_of(x)
    shape = (samples, channels, *size)
    return torch.empty(shape, device=x.device, dtype=x.dtype, memory_format=layout)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.mode, ctx.taps, ctx.gain = inputs
    ctx.layout = layout_of(x)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    """The adjoint, through the op itself: differentiable again, to any order."""
    mode, gain = ("down", 4 * ctx.gain) if ctx.mode == "up" else ("up", ctx.gain / 4)
    dy = dy.contiguous(memory_format=ctx.layout)
    return _resample(dy, mode, ctx.taps, gain), None, None, None


@op("resample2d", fake=_allocate, gradients=_gradients, context=_setup_context)
def _resample(x: Tensor, mode: str, taps: Sequence[int], gain: float) -> Tensor:
    """`gain` times the resampled x."""
    y = _allocate(x, mode, taps, gain)
    if y.numel():
        up, last = mode == "up", in_channels_last(x)
        height, width = x.shape[2:] if up else y.shape[2:]
        tile = plan(x.shape[1], height * width, x.element_size(), last)
        launch(
            up_kernel if up else down_kernel,
            (tile.programs(x.shape[0], x.shape[1], height * width),),
            x=x, y=y, factor=gain * (4 if up else 1) / sum(taps) ** 2,
            C=x.shape[1], H=height, W=width, LAST=last, SMOOTH=len(taps) == 4, **tile.sizes,
        )  # fmt: skip
    return y


# ------------------------------------------------------------------------------------- public ops


def resample2d(
    x: Tensor, mode: Mode, *, taps: Sequence[float] = (1, 1), impl: Impl = "auto"
) -> Tensor:
    """Twice (`mode="up"`) or half (`"down"`) the height and width of x.

    Args:
        x: [N, C, H, W], contiguous or channels_last (anything else is copied); H and W are even for
            "down". float32, bfloat16 or float16; the reference also takes float64.
        taps: of the filter of each axis, an even number; normalised here. The kernel has (1, 1) and
            (1, 3, 3, 1).
        impl: see `fasttrain_kernels.dispatch.resolve`; "auto" also takes the reference for other
            taps.

    Returns:
        In the dtype and memory format of x; sums are float32. Zeros count outside of x, so with
        more than two taps the border is darker.

    Gradients: any order.

    Raises:
        ValueError: an unknown mode, an odd number of taps or odd size to halve, an `impl` that
            cannot run.
    """
    if mode not in get_args(Mode):
        raise ValueError(f"mode is 'up' or 'down', not {mode!r}")
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(
            f"x must be a floating-point tensor [N, C, H, W], got {x.dtype} {list(x.shape)}"
        )
    if len(taps) < 2 or len(taps) % 2:
        raise ValueError(f"taps must be an even number of them, got {len(taps)}")
    if mode == "down" and (x.shape[2] % 2 or x.shape[3] % 2):
        raise ValueError(f"only even sizes can be halved, got {x.shape[2]} x {x.shape[3]}")
    choice, known = resolve(impl, x), tuple(taps) in KERNEL_TAPS
    if impl == "triton" and not known:
        raise ValueError(
            f"the kernels have the taps (1, 1) and (1, 3, 3, 1), not {tuple(taps)}: use impl='auto'"
        )
    if choice == "reference" or not known:
        return resample2d_reference(x, mode, taps=taps)
    x = x.contiguous(memory_format=layout_of(x))
    return _resample(x, mode, [int(t) for t in taps], 1.0)


def upsampled_weight(weight: Tensor) -> Tensor:
    """Doubling with taps (1, 1) and a 3 x 3 convolution as one transposed convolution:

        conv2d(resample2d(x, "up"), weight, padding=1)
            == conv_transpose2d(x, upsampled_weight(weight), stride=2, padding=1)

    exactly, borders included, with 4/9 of the multiplications and no map in between. Along an axis
    output o of the first sums w[k] x[(o + k - 1) // 2], of the second K[o + 1 - 2 i] x[i]. So
    K[t] = w[2 - t] + w[3 - t]: the flipped weight, convolved in full with two ones.

    weight: [O, C, 3, 3]. Returns [C, O, 4, 4] in its dtype, differentiable to any order; sums of
    16-bit values are float32.

    Raises:
        ValueError: a kernel that is not 3 x 3.
    """
    if weight.shape[2:] != (3, 3):
        raise ValueError(f"weight must be [O, C, 3, 3], got {list(weight.shape)}")
    # Sums over windows of 2 x 2, one launch.
    sums = F.avg_pool2d(weight.flip(2, 3), 2, stride=1, padding=1, divisor_override=1)
    return sums.transpose(0, 1)
