r"""Images as the frozen feature networks want them: resized, normalised, in their dtype and memory
format, for several networks in one pass.

For an image x in [-1, 1] (or bytes b, x = b / 127.5 - 1) of 1 or 3 channels, a grey one taken three
times, and a network's mean m and deviation s of each channel in [0, 1]::

    y[c] = resize(x)[c] a[c] + b[c],     a = 0.5 / s,     b = (0.5 - m) / s
    dx   = resize^T (sum over networks of a[c] dy[c])

`resize` is bilinear, corners not aligned. It and the normalisation commute, since bilinear weights
sum to 1. In eager torch each network costs a conversion, the resizing, two passes of normalisation
and one of each conversion; here the small image is read from the cache and every result written
once.

The gradient is that linear map's adjoint: an image's pixel gathers from the outputs it was part of,
in a fixed order, without atomics. It is an op as well, so any order of gradients exists.

    lite0, vgg = image_prep(images, (224, 224), [HALF, IMAGENET], dtype=torch.bfloat16)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain_kernels._bilinear import Axis
from fasttrain_kernels._image_prep_kernels import adjoint_kernel, forward_kernel
from fasttrain_kernels._registration import op
from fasttrain_kernels.dispatch import KERNEL_DTYPES, Impl, constants, launch, resolve

__all__ = ["HALF", "IMAGENET", "Normalisation", "image_prep", "image_prep_reference"]


class Normalisation(NamedTuple):
    """Mean and deviation of each channel, of images in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def scale(self) -> list[float]:
        """a in y = a x + b for x in [-1, 1]."""
        return [0.5 / s for s in self.std]

    @property
    def offset(self) -> list[float]:
        """b in y = a x + b for x in [-1, 1]."""
        return [(0.5 - m) / s for m, s in zip(self.mean, self.std, strict=True)]


HALF = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Keeps [-1, 1]; the normalisation of EfficientNet-Lite's training."""
IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def image_prep_reference(
    images: Tensor,
    size: tuple[int, int],
    norms: Sequence[Normalisation],
    *,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Plain torch, any device and floating dtype, differentiable to any order."""
    if images.dtype == torch.uint8:
        x = images.to(torch.promote_types(dtype, torch.float32)) / 127.5 - 1
    else:
        x = images.to(torch.promote_types(images.dtype, torch.float32))
    if x.shape[-2:] != size:
        x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
    results = []
    for norm in norms:
        y = x.expand(-1, 3, -1, -1)
        if norm != HALF:
            scale, offset = (constants(v, x).view(3, 1, 1) for v in (norm.scale, norm.offset))
            y = y * scale + offset
        results.append(y.to(dtype).contiguous(memory_format=torch.channels_last))
    return results


# --------------------------------------------------------------------------------------- launcher

BLOCK = 1024
"""Values a program of 4 warps: 8 a thread, 128 bits of a 16-bit result."""


def _axes(height: int, width: int, size: Sequence[int]) -> tuple[Axis, Axis]:
    return (
        Axis.of(height, size[0], align_corners=False),
        Axis.of(width, size[1], align_corners=False),
    )


# ----------------------------------------------------------------------------------- registration


def _allocate(
    images: Tensor,
    size: Sequence[int],
    scales: Sequence[float],
    offsets: Sequence[float],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    shape = (images.shape[0], 3, *size)
    last = torch.channels_last
    y0 = torch.empty(shape, device=images.device, dtype=dtype, memory_format=last)
    return y0, torch.empty_like(y0) if len(scales) == 6 else y0.new_empty(0)


def _allocate_image(
    dy0: Tensor | None,
    dy1: Tensor | None,
    shape: Sequence[int],
    scales: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    given = dy0 if dy0 is not None else dy1
    assert given is not None
    return torch.empty(shape, device=given.device, dtype=dtype)


def _last(dy: Tensor | None) -> Tensor | None:
    return None if dy is None else dy.contiguous(memory_format=torch.channels_last)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    images, _, ctx.scales, _, _ = inputs
    ctx.shape, ctx.dtype = images.shape, images.dtype
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy0: Tensor | None, dy1: Tensor | None) -> tuple[Tensor | None, ...]:
    """The adjoint: an op itself, so differentiable again."""
    if len(ctx.scales) == 3:
        dy1 = None
    if dy0 is None and dy1 is None:
        return (None,) * 5
    dx = _adjoint(_last(dy0), _last(dy1), ctx.shape, ctx.scales, ctx.dtype)
    return dx, None, None, None, None


def _setup_adjoint(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dy0, dy1, _, ctx.scales, _ = inputs
    given = dy0 if dy0 is not None else dy1
    ctx.there = (dy0 is not None, dy1 is not None)
    ctx.size, ctx.out_dtype = list(given.shape[2:]), given.dtype


def _adjoint_gradients(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
    zeros = [0.0] * len(ctx.scales)
    y0, y1 = _prepare(d.contiguous(), ctx.size, ctx.scales, zeros, ctx.out_dtype)
    return y0 if ctx.there[0] else None, y1 if ctx.there[1] else None, None, None, None


@op("image_prep", fake=_allocate, gradients=_gradients, context=_setup)
def _prepare(
    images: Tensor,
    size: Sequence[int],
    scales: Sequence[float],
    offsets: Sequence[float],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """For one network or two, by three scales or six; without a second one its result is empty."""
    y0, y1 = _allocate(images, size, scales, offsets, dtype)
    if y0.numel():
        samples, channels, height, width = images.shape
        rows, columns = _axes(height, width, size)
        launch(
            forward_kernel, (samples * -(-3 * size[0] * size[1] // BLOCK),),
            images=images, y0=y0, y1=y1 if len(scales) == 6 else None,
            ratio_h=rows.ratio, offset_h=rows.offset,
            ratio_w=columns.ratio, offset_w=columns.offset,
            **_of_networks("a", scales), **_of_networks("b", offsets),
            C=channels, H=height, W=width, OH=size[0], OW=size[1], BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip
    return y0, y1


@op(
    "image_prep_adjoint", fake=_allocate_image, gradients=_adjoint_gradients, context=_setup_adjoint
)
def _adjoint(
    dy0: Tensor | None,
    dy1: Tensor | None,
    shape: Sequence[int],
    scales: Sequence[float],
    dtype: torch.dtype,
) -> Tensor:
    """One of the two gradients at least is there."""
    dx = _allocate_image(dy0, dy1, shape, scales, dtype)
    given = dy0 if dy0 is not None else dy1
    assert given is not None
    if dx.numel():
        samples, channels, height, width = shape
        size = given.shape[2:]
        rows, columns = _axes(height, width, size)
        launch(
            adjoint_kernel, (samples * -(-channels * height * width // BLOCK),),
            dy0=dy0, dy1=dy1, dx=dx,
            ratio_h=rows.ratio, offset_h=rows.offset, inverse_h=rows.inverse,
            ratio_w=columns.ratio, offset_w=columns.offset, inverse_w=columns.inverse,
            **_of_networks("a", scales), C=channels, H=height, W=width, OH=size[0], OW=size[1],
            REACH_H=rows.reach, REACH_W=columns.reach, BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip
    return dx


def _of_networks(name: str, values: Sequence[float]) -> dict[str, float]:
    """Three of each of two networks, zeros for one that is not there, as the kernels call them."""
    values = (*values, *(0.0,) * (6 - len(values)))
    return {f"{name}{k}{c}": values[3 * k + c] for k in range(2) for c in range(3)}


# ------------------------------------------------------------------------------------- public op


def image_prep(
    images: Tensor,
    size: tuple[int, int],
    norms: Sequence[Normalisation],
    *,
    dtype: torch.dtype = torch.float32,
    impl: Impl = "auto",
) -> list[Tensor]:
    """`images` resized to `size` and normalised, once for each of `norms`.

    Args:
        images: [N, 1 or 3, H, W] in [-1, 1], float32, bfloat16 or float16 (the reference also takes
            float64), or uint8 bytes.
        size: height and width of the results, (H, W) for no resizing.
        norms: of the networks.
        dtype: of the results: float32, bfloat16 or float16, with the reference also float64.
        impl: see `fasttrain_kernels.dispatch.resolve`.

    Returns:
        [N, 3, *size] in `dtype` and channels_last, one for each of `norms`; computed in float32.

    Gradients: for floating-point images, any order.

    Raises:
        ValueError: images of another shape or dtype, or without pixels; an `impl` that cannot run.
    """
    if images.dim() != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must be [N, 1 or 3, H, W], got {list(images.shape)}")
    if len(images) and not images[0].numel():
        raise ValueError(f"images without pixels cannot be resized, got {list(images.shape)}")
    if not images.is_floating_point() and images.dtype != torch.uint8:
        raise ValueError(f"images must be of a floating dtype or uint8, got {images.dtype}")
    probe = images.new_empty(0, dtype=dtype) if images.dtype == torch.uint8 else images
    if resolve(impl, probe) == "reference" or (impl == "auto" and dtype not in KERNEL_DTYPES):
        return image_prep_reference(images, size, norms, dtype=dtype)
    if dtype not in KERNEL_DTYPES:
        raise ValueError(f"the kernels write float32, bfloat16 or float16, not {dtype}")
    images = images.contiguous()
    results: list[Tensor] = []
    for k in range(0, len(norms), 2):
        pair = norms[k : k + 2]
        scales = [a for norm in pair for a in norm.scale]
        offsets = [b for norm in pair for b in norm.offset]
        if images.dtype == torch.uint8:  # a (v / 127.5 - 1) + b
            offsets = [b - a for a, b in zip(scales, offsets, strict=True)]
            scales = [a / 127.5 for a in scales]
        results += _prepare(images, list(size), scales, offsets, dtype)[: len(pair)]
    return results
