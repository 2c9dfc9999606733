r"""One step of the power method for the spectral norms of many matrices at once.

For each W [rows, columns] with its running vectors u and v (Miyato et al., arXiv 1802.05957)::

    v = W^T u / |W^T u|,     u = W v / |W v|,     sigma = u^T W v

In eager torch that is eight small kernels a matrix; the heads of a discriminator have 28 of them.
Here three launches serve all: W^T u by columns, W (W^T u) by rows, and both normalised. Each sums
in a fixed order, without atomics. Vectors are first multiplied by a power of two that brings their
largest element near 1, so that squares neither overflow nor vanish: weights of 1e-25 and of 1e+25
have directions, too.

    power_iteration(weights, us, vs)
"""

# A kernel's arguments have no Python types, so mypy lets its functions be.
# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain_kernels._registration import op
from fasttrain_kernels.dispatch import Impl, launch, resolve, tl, triton

__all__ = ["power_iteration", "power_iteration_reference"]

EPS = 1e-12
"""Smallest norm that is divided by, as in torch's `normalize`, of a vector whose largest element is
near 1: only a vector of zeros has less."""


@torch.no_grad()
def power_iteration_reference(
    weights: Sequence[Tensor], us: Sequence[Tensor], vs: Sequence[Tensor]
) -> None:
    """Plain torch, matrix by matrix."""
    for weight, u, v in zip(weights, us, vs, strict=True):
        v.copy_(_unit(weight.t().mv(u)))
        u.copy_(_unit(weight.mv(v)))


def _unit(x: Tensor) -> Tensor:
    """x / |x|. A power of two changes no bit of it, where torch's `normalize` is right."""
    _, exponent = torch.frexp(x.abs().amax())
    return F.normalize(torch.ldexp(x, -exponent), dim=0, eps=EPS)


# ---------------------------------------------------------------------------------------- kernels
# `places` has a row a matrix: the addresses of W, u, v; rows, columns; and where its part of the
# scratch vector begins: W^T u, then W (W^T u). `tiles` has a row a program: matrix and first column
# or row. Addresses are of float32 and divide by 4.


@triton.jit
def _matrix(places, m):
    pointer: tl.constexpr = tl.pointer_type(tl.float32)
    at = places + m * 6
    weight, u, v = tl.load(at).to(pointer), tl.load(at + 1).to(pointer), tl.load(at + 2).to(pointer)
    return weight, u, v, tl.load(at + 3), tl.load(at + 4), tl.load(at + 5)


@triton.jit
def _near_1(peak):
    """The power of two that brings `peak` near 1, at least 2^-126. A factor does not matter to a
    direction, so the exponent's bits will do."""
    exponent = tl.minimum(peak.to(tl.int32, bitcast=True) >> 23, 253)
    return ((254 - exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _peak(source, length, BLOCK: tl.constexpr):
    """The largest magnitude of a vector. Of NaN the sums that follow tell."""
    peak = tl.zeros([BLOCK], tl.float32)
    for at in range(0, length, BLOCK):
        i = at + tl.arange(0, BLOCK)
        value = tl.abs(tl.load(source + i, mask=i < length, other=0.0))
        peak = tl.maximum(peak, value, propagate_nan=tl.PropagateNan.NONE)
    return tl.max(peak)


@triton.jit
def _columns_kernel(places, tiles, scratch, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """BLOCK_C values of W^T u."""
    m, c0 = tl.load(tiles + 2 * tl.program_id(0)), tl.load(tiles + 2 * tl.program_id(0) + 1)
    weight, u, _, rows, columns, begin = _matrix(places, m)
    column = c0 + tl.arange(0, BLOCK_C)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for r0 in range(0, rows, BLOCK_R):
        row = r0 + tl.arange(0, BLOCK_R)
        live = (row < rows)[:, None] & (column < columns)[None, :]
        values = tl.load(weight + row[:, None] * columns + column[None, :], mask=live, other=0.0)
        total += values * tl.load(u + row, mask=row < rows, other=0.0)[:, None]
    tl.store(scratch + begin + column, tl.sum(total, axis=0), mask=column < columns)


@triton.jit
def _rows_kernel(places, tiles, scratch, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """BLOCK_R values of W (W^T u), up to a factor."""
    m, r0 = tl.load(tiles + 2 * tl.program_id(0)), tl.load(tiles + 2 * tl.program_id(0) + 1)
    weight, _, _, rows, columns, begin = _matrix(places, m)
    row = r0 + tl.arange(0, BLOCK_R)
    scale = _near_1(_peak(scratch + begin, columns, BLOCK_C))
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for c0 in range(0, columns, BLOCK_C):
        column = c0 + tl.arange(0, BLOCK_C)
        live = (row < rows)[:, None] & (column < columns)[None, :]
        values = tl.load(weight + row[:, None] * columns + column[None, :], mask=live, other=0.0)
        direction = tl.load(scratch + begin + column, mask=column < columns, other=0.0) * scale
        total += values * direction[None, :]
    tl.store(scratch + begin + columns + row, tl.sum(total, axis=1), mask=row < rows)


@triton.jit
def _normalised(source, target, length, EPS: tl.constexpr, BLOCK: tl.constexpr):
    scale = _near_1(_peak(source, length, BLOCK))
    square = tl.zeros([BLOCK], tl.float32)
    for at in range(0, length, BLOCK):
        i = at + tl.arange(0, BLOCK)
        value = tl.load(source + i, mask=i < length, other=0.0) * scale
        square += value * value
    norm = tl.maximum(tl.sqrt(tl.sum(square)), EPS, propagate_nan=tl.PropagateNan.ALL)
    for at in range(0, length, BLOCK):
        i = at + tl.arange(0, BLOCK)
        value = tl.load(source + i, mask=i < length, other=0.0) * scale
        tl.store(target + i, value / norm, mask=i < length)


@triton.jit
def _normalise_kernel(places, scratch, EPS: tl.constexpr, BLOCK: tl.constexpr):
    """v of a matrix from W^T u, u from W (W^T u): a factor does not matter to a direction."""
    _, u, v, rows, columns, begin = _matrix(places, tl.program_id(0))
    _normalised(scratch + begin, v, columns, EPS, BLOCK)
    _normalised(scratch + begin + columns, u, rows, EPS, BLOCK)


# --------------------------------------------------------------------------------------- launcher

COLUMNS = (16, 128)
"""Rows and columns of a tile in the kernel by columns."""
ROWS = (4, 512)
"""Rows and columns of a tile in the kernel by rows."""


@lru_cache(maxsize=16)
def _tables(
    sizes: tuple[tuple[int, int], ...], addresses: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """`places`, and `tiles` of the two kernels, int64, copied to the device once: a training run
    keeps its weights where they are."""
    begins = [0, *accumulate(rows + columns for rows, columns in sizes)]
    places = [
        [*addresses[3 * m : 3 * m + 3], rows, columns, begins[m]]
        for m, (rows, columns) in enumerate(sizes)
    ]
    by_columns = [
        [m, c] for m, (_, columns) in enumerate(sizes) for c in range(0, columns, COLUMNS[1])
    ]
    by_rows = [[m, r] for m, (rows, _) in enumerate(sizes) for r in range(0, rows, ROWS[0])]
    first, second, third = (
        torch.tensor(table, device=device) for table in (places, by_columns, by_rows)
    )
    return first, second, third


# ----------------------------------------------------------------------------------- registration


@op("power_iteration", written=("us", "vs"))
def _run(weights: Sequence[Tensor], us: Sequence[Tensor], vs: Sequence[Tensor]) -> None:
    sizes = tuple((int(w.shape[0]), int(w.shape[1])) for w in weights)
    tensors = zip(weights, us, vs, strict=True)
    addresses = tuple(t.data_ptr() for matrix in tensors for t in matrix)
    device = weights[0].device
    places, by_columns, by_rows = _tables(sizes, addresses, device)
    scratch = torch.empty(sum(map(sum, sizes)), device=device, dtype=torch.float32)
    both = {"places": places, "scratch": scratch, "num_warps": 4}
    for kernel, tiles, (rows, columns) in (
        (_columns_kernel, by_columns, COLUMNS),
        (_rows_kernel, by_rows, ROWS),
    ):
        launch(kernel, (len(tiles),), tiles=tiles, BLOCK_R=rows, BLOCK_C=columns, **both)
    launch(_normalise_kernel, (len(sizes),), EPS=EPS, BLOCK=1024, **both)


# ------------------------------------------------------------------------------------- public op


def power_iteration(
    weights: Sequence[Tensor],
    us: Sequence[Tensor],
    vs: Sequence[Tensor],
    *,
    impl: Impl = "auto",
) -> None:
    """Improve u and v of every matrix by one step of the power method, in place.

    Args:
        weights: [rows, columns] each, views of convolution weights for instance. The kernels take
            float32 in plain row order; the reference any floating dtype and strides.
        us, vs: [rows] and [columns] of each, of unit length.
        impl: see `fasttrain_kernels.dispatch.resolve`; "auto" takes the reference for weights that
            the kernels do not.

    No gradient: u and v are constants to the spectral norm's.

    Raises:
        ValueError: lists or shapes that do not fit, an `impl` that cannot run.
    """
    if not weights or not len(weights) == len(us) == len(vs):
        raise ValueError(
            f"got {len(weights)} weights, {len(us)} us, {len(vs)} vs: one of each a matrix"
        )
    for weight, u, v in zip(weights, us, vs, strict=True):
        if weight.dim() != 2 or weight.shape != (len(u), len(v)):
            raise ValueError(
                f"a weight of shape {list(weight.shape)} does not fit u of {len(u)} and v of "
                f"{len(v)} elements"
            )
    plain = all(
        t.is_contiguous() and t.dtype == torch.float32 for ts in (weights, us, vs) for t in ts
    )
    choice = resolve(impl, weights[0])
    if impl == "triton" and not plain:
        raise ValueError("the kernels take contiguous float32 only: use impl='auto'")
    if choice == "triton" and plain:
        with torch.no_grad():
            _run(list(weights), list(us), list(vs))
    else:
        power_iteration_reference(weights, us, vs)
