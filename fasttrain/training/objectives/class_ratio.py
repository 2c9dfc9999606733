"""The class ratio of diffused images (DiffRatio: Chen et al., arXiv 2502.08005): a classifier that
knows the noise level tells real images with noise, x_t = x + t n, from generated ones,

    L_c = softplus(-c(x_t real)) + softplus(c(x_t generated)),      c -> ln p_t / q_t at its best,

for each class where there are classes, and its gradient trains the generator. That of the
divergence KL(q_t | p_t) is -grad ln p_t / q_t, which score distillation takes from two networks,
each with an error of its own. Here

    L = -w(t) c(x_t) / P,           w(t) = t |t, d| / d,            |t, d| = sqrt(t^2 + d^2),

with P pixels and d = sigma_data: t^2 grad ln p_t / q_t = D_r - D_f is DMD's difference, and DMD
divides it by the distance of an image from its estimate, t d / |t, d| of Gaussian data. Levels are
those of EDM's training, for both networks.

Verified: that both losses are right for Gaussian data, whose ratio is known. Of the paper only the
abstract was at hand. It says what this is: one classifier of diffused real and generated images in
the place of two score networks, smaller than these, and no teacher. Chosen here are weights,
levels, and the classifier's form and start (`fasttrain.discriminator.log_ratio`); no result of the
paper has been reproduced.

    loss = student_loss(classifier(x + t * n, t), t, sigma_data=0.5, pixels=64).mean()
"""

from __future__ import annotations

import torch
from torch import Tensor

from fasttrain.discriminator.log_ratio import scale
from fasttrain.training.objectives.gan import RATIO, DiscriminatorLoss

__all__ = ["classifier_loss", "levels", "student_loss", "weight"]


P_MEAN, P_STD = -1.2, 1.2
"""Of ln t, as in EDM's training."""


def levels(normal: Tensor) -> Tensor:
    """Noise levels t from standard normal draws of any shape."""
    return (P_MEAN + P_STD * normal).exp()


def weight(t: Tensor, sigma_data: float) -> Tensor:
    """w(t) = t |t, d| / d."""
    return t / scale(t, sigma_data)


def student_loss(logits: Tensor, t: Tensor, *, sigma_data: float, pixels: int) -> Tensor:
    """The generator's loss of each image [N], from ln p_t / q_t of its noised image [N] at level
    t [N, ...]."""
    return -weight(t.reshape(-1), sigma_data) * logits.float() / pixels


def classifier_loss(logits: Tensor) -> DiscriminatorLoss:
    """The classifier's, a mean over samples, with the mean of either half: logits [2 N], the real
    images' first."""
    real, fake = (half[:, None] for half in torch.chunk(logits, 2))
    return RATIO.discriminator([real], [fake])
