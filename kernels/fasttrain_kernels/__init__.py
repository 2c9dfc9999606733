"""Fused operations of the trainer, each with a plain torch reference.

The package knows torch and triton and nothing of `fasttrain`. `kernels/README.md` says what an op
file contains; `dispatch` decides which implementation runs::

    from fasttrain_kernels import attention, group_norm

    y = group_norm(x, weight, bias, groups=32)
"""

from fasttrain_kernels.attention import (
    MOST_HEAD_SIZE,
    attention,
    attention_reference,
    blocked_rows,
)
from fasttrain_kernels.bias_activation import bias_activation_
from fasttrain_kernels.counter_random import counter_normal, counter_uniform
from fasttrain_kernels.dispatch import Impl, in_channels_last, on_cpu, resolve, using
from fasttrain_kernels.ghost_batch_norm import ghost_batch_norm
from fasttrain_kernels.group_norm import group_norm, group_norm_reference
from fasttrain_kernels.image_prep import HALF, IMAGENET, Normalisation, image_prep
from fasttrain_kernels.logit_losses import logit_losses
from fasttrain_kernels.multi_tensor import all_finite, lerp_, to_host
from fasttrain_kernels.resample import resample2d, resample2d_reference, upsampled_weight
from fasttrain_kernels.residual_scale import residual_scale, residual_scale_reference
from fasttrain_kernels.scale_mixing import upsample_add
from fasttrain_kernels.spectral_norm import power_iteration
from fasttrain_kernels.statistics import partial_statistics

__all__ = [
    "HALF",
    "IMAGENET",
    "MOST_HEAD_SIZE",
    "Impl",
    "Normalisation",
    "all_finite",
    "attention",
    "attention_reference",
    "bias_activation_",
    "blocked_rows",
    "counter_normal",
    "counter_uniform",
    "ghost_batch_norm",
    "group_norm",
    "group_norm_reference",
    "image_prep",
    "in_channels_last",
    "lerp_",
    "logit_losses",
    "on_cpu",
    "partial_statistics",
    "power_iteration",
    "resample2d",
    "resample2d_reference",
    "residual_scale",
    "residual_scale_reference",
    "resolve",
    "to_host",
    "upsample_add",
    "upsampled_weight",
    "using",
]
