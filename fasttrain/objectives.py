"""What the GAN optimises: tensors in, tensors out, nothing else.

The non-saturating loss on logits D (Goodfellow et al., arXiv 1406.2661) and the zero-centred
gradient penalty on real images (Mescheder et al., "Which Training Methods for GANs do actually
Converge?", arXiv 1801.04406):

    L_G = softplus(-D(fake)),   L_D = softplus(D(fake)) + softplus(-D(real)),
    R1 = || grad_x sum D(x) ||^2.

Each is a mean over samples and logits (R1: over samples), summed over backbones, so it does not
change with batch, micro-batch or world size.

Use:

    loss = generator_loss(discriminator(fake, class_labels))
    loss = discriminator_loss(real=discriminator(images, class_labels), fake=...)
    loss = gamma / 2 * r1_penalty(discriminator, images, class_labels)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["discriminator_loss", "generator_loss", "r1_penalty"]


def generator_loss(logits: Sequence[Tensor]) -> Tensor:
    """Scalar loss of the generator from the logits of its images, [N, L_b] for each backbone."""
    return torch.stack([F.softplus(-fake).mean() for fake in logits]).sum()


def discriminator_loss(*, real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Scalar loss of the discriminator from the logits, [N, L_b] for each backbone."""
    losses = [
        F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()
        for real_logits, fake_logits in zip(real, fake, strict=True)
    ]
    return torch.stack(losses).sum()


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
