from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain_kernels.dispatch import Impl, resolve


def group_norm_silu_reference(x, weight=None, bias=None, *, groups, eps=1e-5, shift_in=None,
                              scale=None, shift=None, silu=True):
    dtype = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32

    def cast(t):
        return None if t is None else t.to(dtype)

    def per_sample(t):
        return t.to(dtype).reshape(t.shape + (1,) * (x.dim() - 2))

    h = x.to(dtype)
    if shift_in is not None:
        h = h + per_sample(shift_in)
    y = F.group_norm(h, groups, cast(weight), cast(bias), eps)
    if scale is not None and shift is not None:
        y = torch.addcmul(per_sample(shift), y, per_sample(scale) + 1)
    elif scale is not None:
        y = y * (per_sample(scale) + 1)
    elif shift is not None:
        y = y + per_sample(shift)
    if silu:
        y = F.silu(y, inplace=not y.requires_grad)
    return y.to(x.dtype)


def group_norm_silu(x: Tensor, weight=None, bias=None, *, groups: int, eps: float = 1e-5,
                    shift_in=None, scale=None, shift=None, silu: bool = True, impl: Impl = "auto"):
    resolve(impl, x)
    return group_norm_silu_reference(x, weight, bias, groups=groups, eps=eps, shift_in=shift_in,
                                     scale=scale, shift=shift, silu=silu)
