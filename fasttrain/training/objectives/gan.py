"""Objectives of the GAN: tensors in, tensors out, nothing else.

The non-saturating loss on logits D (Goodfellow et al., arXiv 1406.2661), or the hinge loss (Lim and
Ye, arXiv 1705.02894), and one of two gradient penalties on real images: R1 (Mescheder et al.,
"Which Training Methods for GANs do actually Converge?", arXiv 1801.04406), or its approximation by
a finite difference (Lin et al., "Diffusion Adversarial Post-Training", arXiv 2501.08316), which
needs no double backward and no backward through the feature networks at all:

    L_G = softplus(-D(fake)),        L_D = softplus(D(fake)) + softplus(-D(real)),
    hinge: L_G = -D(fake),           L_D = max(0, 1 + D(fake)) + max(0, 1 - D(real)),
    R1 = || grad_x sum D(x) ||^2,    approximated: (D(x) - D(x + sigma n))^2,   n ~ N(0, 1).

Each is a mean over samples and logits (R1: over samples), summed over backbones, so it does not
change with batch, micro-batch or world size.

Use:

    loss = generator_loss(discriminator(fake, class_labels))
    loss = discriminator_loss(real=discriminator(images, class_labels), fake=...).loss
    loss = gamma / 2 * r1_penalty(discriminator, images, class_labels)
    loss = weight * approximated_r1(clean=..., noisy=...)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fasttrain_kernels import logit_losses

__all__ = [
    "DiscriminatorLoss",
    "Loss",
    "approximated_r1",
    "discriminator_loss",
    "generator_loss",
    "r1_penalty",
]

Loss = Literal["non_saturating", "hinge"]


def generator_loss(logits: Sequence[Tensor], kind: Loss = "non_saturating") -> Tensor:
    """Scalar loss of the generator from the logits of its images, [N, L_b] for each backbone."""
    losses, means = logit_losses(logits, [-1] * len(logits)).unbind(1)
    return losses.sum() if kind == "non_saturating" else -means.sum()


class DiscriminatorLoss(NamedTuple):
    """The loss, and the mean logits of real images and of fakes over samples and backbones, all
    scalar."""

    loss: Tensor
    real: Tensor
    fake: Tensor


def discriminator_loss(
    *, real: Sequence[Tensor], fake: Sequence[Tensor], kind: Loss = "non_saturating"
) -> DiscriminatorLoss:
    """Loss of the discriminator from the logits, [N, L_b] for each backbone."""
    count = len(real)
    signs = [-1] * count + [1] * count
    name: Literal["softplus", "hinge"] = "softplus" if kind == "non_saturating" else "hinge"
    losses, means = logit_losses([*real, *fake], signs, name).unbind(1)
    return DiscriminatorLoss(losses.sum(), means[:count].mean(), means[count:].mean())


def r1_penalty(
    discriminator: Callable[[Tensor, Tensor | None], Sequence[Tensor]],
    images: Tensor,
    class_labels: Tensor | None,
) -> Tensor:
    """Mean over the images of the squared norm of the gradient of all logits' sum, a scalar.

    images [N, ...], real; class_labels [N, label_dim] or None. Differentiable in the
    discriminator's parameters (a double backward).
    """
    images = images.detach().requires_grad_()
    logits = discriminator(images, class_labels)
    total = torch.stack([backbone.sum() for backbone in logits]).sum()
    (gradient,) = torch.autograd.grad(total, images, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


def approximated_r1(*, clean: Sequence[Tensor], noisy: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of the logits of real images with and without noise, [N, L_b] for
    each backbone, summed over backbones, a scalar. About sigma^2 times the mean squared norm of a
    logit's gradient; differentiable in the discriminator's parameters by one backward pass."""
    squares = [(a - b).float().square().mean() for a, b in zip(clean, noisy, strict=True)]
    return torch.stack(squares).sum()
