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

# A kernel's arguments have no Python types, so mypy lets its functions be.
# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain_kernels.dispatch import Impl, in_channels_last, resolve, tl, triton

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
        line = torch.tensor(taps, dtype=h.dtype, device=x.device)
        filters = (torch.outer(line, line) / line.sum() ** 2).expand(channels, 1, -1, -1)
        if mode == "down":
            y = F.conv2d(h, filters, **options)
        else:
            y = F.conv_transpose2d(h, 4 * filters, **options)
    return y.to(x.dtype).contiguous(memory_format=_layout(x))


def _layout(x: Tensor) -> torch.memory_format:
    return torch.channels_last if in_channels_last(x) else torch.contiguous_format


# ---------------------------------------------------------------------------------------- kernels
# A tile is BLOCK_C channels by BLOCK_P pixels, counted along the rows, of the smaller map of one
# sample; H and W are that map's. The other map's pixels that belong to it, twice as many along each
# axis, are read or written once; those the smooth filter shares with its neighbours come from the
# cache. LAST: channels_last, where every access is 128 bits wide along the channels. Contiguous
# maps are 128 bits wide along the pixels, two columns of the larger map side by side, split or
# interleaved in registers; only neighbouring columns of the smooth filter are single values.


@triton.jit
def _tile(C: tl.constexpr, HW: tl.constexpr, LAST: tl.constexpr,
          BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):  # fmt: skip
    """This program's sample, channels and first pixel, along what lies side by side in memory."""
    across: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    along: tl.constexpr = (HW + BLOCK_P - 1) // BLOCK_P
    tile = tl.program_id(0) % (across * along)
    part = tile // across if LAST else tile % along
    channels = (tile % across if LAST else tile // along) * BLOCK_C + tl.arange(0, BLOCK_C)
    return (tl.program_id(0) // (across * along)).to(tl.int64), channels, part * BLOCK_P


@triton.jit
def _at(rows, columns, channels, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
        LAST: tl.constexpr):  # fmt: skip
    """Offsets [channels, pixels] in a map of H x W, and which exist."""
    inside = (rows >= 0) & (rows < H) & (columns >= 0) & (columns < W)
    pixels = (rows.to(tl.int64) * W + columns) * (C if LAST else 1)
    offsets = channels.to(tl.int64)[:, None] * (1 if LAST else H * W) + pixels[None, :]
    return offsets, (channels < C)[:, None] & inside[None, :]


@triton.jit
def _load(x, rows, columns, channels, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
          LAST: tl.constexpr):  # fmt: skip
    """A tile in float32, zero outside of the map."""
    offsets, live = _at(rows, columns, channels, C, H, W, LAST)
    return tl.load(x + offsets, mask=live, other=0.0).to(tl.float32)


@triton.jit
def _down_kernel(
    x, y, factor,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, LAST: tl.constexpr, SMOOTH: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    sample, channels, first = _tile(C, H * W, LAST, BLOCK_C, BLOCK_P)
    x, y = x + sample * (C * 4 * H * W), y + sample * (C * H * W)
    pixels = first + tl.arange(0, BLOCK_P)
    pairs = 2 * first + tl.arange(0, 2 * BLOCK_P)  # every column of every other row
    i, j = pixels // W, pixels % W
    total = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    for t in tl.static_range(4 if SMOOTH else 2):
        row = t - 1 if SMOOTH else t
        if LAST:
            line = _load(x, 2 * i + row, 2 * j, channels, C, 2 * H, 2 * W, LAST)
            line += _load(x, 2 * i + row, 2 * j + 1, channels, C, 2 * H, 2 * W, LAST)
        else:
            rows, columns = pairs // (2 * W) * 2 + row, pairs % (2 * W)
            both = _load(x, rows, columns, channels, C, 2 * H, 2 * W, LAST)
            even, odd = tl.split(tl.reshape(both, [BLOCK_C, BLOCK_P, 2]))
            line = even + odd
        if SMOOTH:
            line = 3 * line + _load(x, 2 * i + row, 2 * j - 1, channels, C, 2 * H, 2 * W, LAST)
            line += _load(x, 2 * i + row, 2 * j + 2, channels, C, 2 * H, 2 * W, LAST)
            line *= 3 if row == 0 or row == 1 else 1
        total += line
    offsets, live = _at(i, j, channels, C, H, W, LAST)
    tl.store(y + offsets, (total * factor).to(y.dtype.element_ty), mask=live)


@triton.jit
def _columns(x, i, j, channels, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
             LAST: tl.constexpr, SMOOTH: tl.constexpr):  # fmt: skip
    """What pixel (i, j) gives the two columns 2 j and 2 j + 1."""
    centre = _load(x, i, j, channels, C, H, W, LAST)
    if SMOOTH:
        left = 3 * centre + _load(x, i, j - 1, channels, C, H, W, LAST)
        right = 3 * centre + _load(x, i, j + 1, channels, C, H, W, LAST)
    else:
        left, right = centre, centre
    return left, right


@triton.jit
def _store_columns(y, left, right, row, first, channels, C: tl.constexpr, H: tl.constexpr,
                   W: tl.constexpr, LAST: tl.constexpr, BLOCK_P: tl.constexpr):  # fmt: skip
    """Columns 2 j and 2 j + 1 of row 2 i + `row` of the larger map."""
    left, right = left.to(y.dtype.element_ty), right.to(y.dtype.element_ty)
    if LAST:
        pixels = first + tl.arange(0, BLOCK_P)
        i, j = pixels // W, pixels % W
        offsets, live = _at(2 * i + row, 2 * j, channels, C, 2 * H, 2 * W, LAST)
        tl.store(y + offsets, left, mask=live)
        tl.store(y + offsets + C, right, mask=live)
    else:
        pairs = 2 * first + tl.arange(0, 2 * BLOCK_P)
        rows, columns = pairs // (2 * W) * 2 + row, pairs % (2 * W)
        offsets, live = _at(rows, columns, channels, C, 2 * H, 2 * W, LAST)
        tl.store(y + offsets, tl.interleave(left, right), mask=live)


@triton.jit
def _up_kernel(
    x, y, factor,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, LAST: tl.constexpr, SMOOTH: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    sample, channels, first = _tile(C, H * W, LAST, BLOCK_C, BLOCK_P)
    x, y = x + sample * (C * H * W), y + sample * (C * 4 * H * W)
    pixels = first + tl.arange(0, BLOCK_P)
    i, j = pixels // W, pixels % W
    left, right = _columns(x, i, j, channels, C, H, W, LAST, SMOOTH)
    left, right = left * factor, right * factor
    for row in tl.static_range(2):
        if SMOOTH:
            other = i + 1 if row else i - 1
            far_left, far_right = _columns(x, other, j, channels, C, H, W, LAST, SMOOTH)
            far_left, far_right = 3 * left + far_left * factor, 3 * right + far_right * factor
        else:
            far_left, far_right = left, right
        _store_columns(y, far_left, far_right, row, first, channels, C, H, W, LAST, BLOCK_P)


# --------------------------------------------------------------------------------------- launcher


class Plan(NamedTuple):
    """Launch of a kernel: channels and pixels of a tile of the smaller map, warps of 32 threads."""

    block_c: int
    block_p: int
    num_warps: int


def _power_of_2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def plan(channels: int, pixels: int, itemsize: int, last: bool) -> Plan:
    """The fixed launch rule, read off the compiled kernels (benchmarks/aot.py): nothing spills.
    pixels: of the smaller map. 16 a thread. In channels_last whole cache lines of 128 bytes, and
    64 pixels: several short rows, so that fewer reads go over the tile's edge."""
    if last:
        block_c = min(128 // itemsize, _power_of_2(channels))
        block_p = min(64, _power_of_2(pixels))
    else:
        block_p = min(512, _power_of_2(pixels))
        block_c = min(2048 // block_p, 64, _power_of_2(channels))
    return Plan(block_c, block_p, max(1, block_c * block_p // 512))


# ----------------------------------------------------------------------------------- registration


@torch.library.custom_op("fasttrain::resample2d", mutates_args=())
def _resample(x: Tensor, mode: str, taps: Sequence[int], gain: float) -> Tensor:
    """`gain` times the resampled x."""
    y = _allocate(x, mode, taps, gain)
    if y.numel():
        up, last = mode == "up", in_channels_last(x)
        height, width = x.shape[2:] if up else y.shape[2:]
        sizes = (x.shape[1], height, width, last, len(taps) == 4)
        block_c, block_p, warps = plan(x.shape[1], height * width, x.element_size(), last)
        programs = x.shape[0] * -(-x.shape[1] // block_c) * -(-height * width // block_p)
        factor = gain * (4 if up else 1) / sum(taps) ** 2
        with torch.cuda.device_of(x):
            (_up_kernel if up else _down_kernel)[(programs,)](
                x, y, factor, *sizes, block_c, block_p, num_warps=warps, enable_fp_fusion=True
            )
    return y


@_resample.register_fake
def _allocate(x: Tensor, mode: str, taps: Sequence[int], gain: float) -> Tensor:
    samples, channels, height, width = x.shape
    size = (height * 2, width * 2) if mode == "up" else (height // 2, width // 2)
    layout = _layout(x)
    shape = (samples, channels, *size)
    return torch.empty(shape, device=x.device, dtype=x.dtype, memory_format=layout)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.mode, ctx.taps, ctx.gain = inputs
    ctx.layout = _layout(x)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    """The adjoint, through the op itself: differentiable again, to any order."""
    mode, gain = ("down", 4 * ctx.gain) if ctx.mode == "up" else ("up", ctx.gain / 4)
    dy = dy.contiguous(memory_format=ctx.layout)
    return _resample(dy, mode, ctx.taps, gain), None, None, None


_resample.register_autograd(_gradients, setup_context=_setup_context)


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
    x = x.contiguous(memory_format=_layout(x))
    return _resample(x, mode, [int(t) for t in taps], 1.0)


def upsampled_weight(weight: Tensor) -> Tensor:
    """Doubling with taps (1, 1) and a 3 x 3 convolution as one transposed convolution:

        conv2d(resample2d(x, "up"), weight, padding=1)
            == conv_transpose2d(x, upsampled_weight(weight), stride=2, padding=1)

    exactly, borders included, with 4/9 of the multiplications and no map in between. Along an axis
    output o of the first sums w[k] x[(o + k - 1) // 2], of the second K[o + 1 - 2 i] x[i]. So
    K[t] = w[2 - t] + w[3 - t]: the flipped weight, convolved in full with two ones.

    weight: [O, C, 3, 3]. Returns [C, O, 4, 4] in its dtype, differentiable to any order.

    Raises:
        ValueError: a kernel that is not 3 x 3.
    """
    if weight.shape[2:] != (3, 3):
        raise ValueError(f"weight must be [O, C, 3, 3], got {list(weight.shape)}")
    padded = F.pad(weight.flip(2, 3).transpose(0, 1), (1, 1, 1, 1))
    rows = padded[:, :, :-1] + padded[:, :, 1:]
    return rows[..., :-1] + rows[..., 1:]
