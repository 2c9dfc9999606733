"""Fused operations of the trainer, each with a plain torch reference.

The package knows torch and triton and nothing of `fasttrain`. `kernels/README.md` says what an op
file contains; `dispatch` decides which implementation runs::

    from fasttrain_kernels import attention, group_norm_silu

    y = group_norm_silu(x, weight, bias, groups=32)
"""

from fasttrain_kernels.attention import (
    MOST_HEAD_SIZE,
    attention,
    attention_reference,
    blocked_rows,
)
from fasttrain_kernels.counter_random import counter_normal, counter_uniform
from fasttrain_kernels.dispatch import Impl, in_channels_last, resolve
from fasttrain_kernels.group_norm import group_norm_silu, group_norm_silu_reference
from fasttrain_kernels.multi_tensor import all_finite, lerp_
from fasttrain_kernels.resample import resample2d, resample2d_reference, upsampled_weight
from fasttrain_kernels.residual_scale import residual_scale, residual_scale_reference
from fasttrain_kernels.statistics import partial_statistics

__all__ = [
    "MOST_HEAD_SIZE",
    "Impl",
    "all_finite",
    "attention",
    "attention_reference",
    "blocked_rows",
    "counter_normal",
    "counter_uniform",
    "group_norm_silu",
    "group_norm_silu_reference",
    "in_channels_last",
    "lerp_",
    "partial_statistics",
    "resample2d",
    "resample2d_reference",
    "residual_scale",
    "residual_scale_reference",
    "resolve",
    "upsampled_weight",
]
