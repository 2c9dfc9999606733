"""Fused operations of the trainer, each with a plain torch reference.

The package knows torch and triton and nothing of `fasttrain`. `kernels/README.md` says what an op
file contains; `dispatch` decides which implementation runs::

    from fasttrain_kernels import counter_normal, group_norm_silu

    y = group_norm_silu(x, weight, bias, groups=32)
"""

from fasttrain_kernels.counter_random import counter_normal, counter_uniform
from fasttrain_kernels.dispatch import Impl, resolve
from fasttrain_kernels.group_norm import group_norm_silu, group_norm_silu_reference

__all__ = [
    "Impl",
    "counter_normal",
    "counter_uniform",
    "group_norm_silu",
    "group_norm_silu_reference",
    "resolve",
]
