"""What the tests of every op share: the device, tolerances, guarded memory."""

from __future__ import annotations

import torch
from torch import Tensor

from fasttrain_kernels import dispatch

DEVICE = "cuda" if torch.cuda.is_available() and not dispatch.INTERPRETED else "cpu"

# Relative L2 error, in the dtype that is stored: a few units in the last place of float32, one half
# of one for the others, but the interpreter truncates to bfloat16 where a GPU rounds to nearest.
TOLERANCE = {
    torch.float32: 3e-6,
    torch.bfloat16: 8e-3 if dispatch.INTERPRETED else 3e-3,
    torch.float16: 5e-4,
}


def guarded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """`values` on the test device, with their strides (of a dense tensor), and with NaN before and
    after them in memory: a read outside shows."""
    count = values.numel()
    buffer = torch.full((count + 256,), float("nan"), dtype=dtype, device=DEVICE)
    inside = buffer[128 : 128 + count].as_strided(values.shape, values.stride(), 128)
    return inside.copy_(values)


def relative_error(got: Tensor, expected: Tensor) -> float:
    """L2, relative; where the expected values nearly vanish, relative to 0.01 an element."""
    got, expected = got.detach().double(), expected.detach().double()
    floor = 0.01 * max(1, expected.numel()) ** 0.5
    return float((got - expected).norm() / expected.norm().clamp_min(floor))
