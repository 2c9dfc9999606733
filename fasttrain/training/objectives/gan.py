"""Objectives of the GAN: tensors in, tensors out, nothing else.

The non-saturating loss on logits D (Goodfellow et al., arXiv 1406.2661), the hinge loss (Lim and
Ye, arXiv 1705.02894), or the relativistic loss on pairs of a real image and a fake of its class
(Jolicoeur-Martineau, arXiv 1807.00734; in the form of R3GAN, Huang et al., arXiv 2501.05441), and
gradient penalties on real images, R1, or on fakes, R2 (Mescheder et al., "Which Training Methods
for GANs do actually Converge?", arXiv 1801.04406), or their approximation by a finite difference
(Lin et al., "Diffusion Adversarial Post-Training", arXiv 2501.08316), which needs no double
backward and no backward through the feature networks at all:

    L_G = softplus(-D(fake)),        L_D = softplus(D(fake)) + softplus(-D(real)),
    hinge: L_G = -D(fake),           L_D = max(0, 1 + D(fake)) + max(0, 1 - D(real)),
    ratio: L_G = -D(fake),           L_D = softplus(D(fake)) + softplus(-D(real)),
    relativistic: L_G = softplus(D(real) - D(fake)),    L_D = softplus(D(fake) - D(real)),
    R1, R2 = || grad_x sum D(x) ||^2,    approximated: (D(x) - D(x + sigma n))^2,   n ~ N(0, 1),
    centring: (D(real) + D(fake))^2.

Each is a mean over samples and logits (R1: over samples), summed over backbones, so it does not
change with batch, micro-batch or world size.

Use:

    loss = generator_loss(discriminator(fake, class_labels))
    loss = discriminator_loss(real=discriminator(images, class_labels), fake=...).loss
    loss = gamma / 2 * r1_penalty(discriminator, images, class_labels)
    loss = weight * approximated_r1(clean=..., noisy=...)
    loss = weight * centring(real=..., fake=...)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from fasttrain.settings.registry import LOSSES, load
from fasttrain_kernels import logit_losses

__all__ = [
    "HINGE",
    "NON_SATURATING",
    "RATIO",
    "RELATIVISTIC",
    "DiscriminatorLoss",
    "GanLoss",
    "approximated_r1",
    "centring",
    "discriminator_loss",
    "generator_loss",
    "r1_penalty",
]


class DiscriminatorLoss(NamedTuple):
    """The loss, and the mean logits of real images and of fakes over samples and backbones, all
    scalar."""

    loss: Tensor
    real: Tensor
    fake: Tensor


class GanLoss(Protocol):
    """What generator and discriminator optimise, from the logits [N, L_b] of each backbone. Each
    result is a scalar and a mean over samples and logits, so it does not change with batch,
    micro-batch or world size."""

    def generator(self, fake: Sequence[Tensor], real: Callable[[], Sequence[Tensor]]) -> Tensor:
        """Loss of the generator from the logits of its images. real: gives those of the real images
        with the same classes, without a gradient, for a pass of the discriminator."""

    def discriminator(self, real: Sequence[Tensor], fake: Sequence[Tensor]) -> DiscriminatorLoss:
        """Loss of the discriminator."""


@dataclass(frozen=True)
class MarginLoss:
    """One of `fasttrain_kernels.logit_losses` for the discriminator; `of_generator`: for the
    generator, too, which optimises the mean logit otherwise."""

    name: Literal["softplus", "hinge"]
    of_generator: bool

    def generator(self, fake: Sequence[Tensor], real: Callable[[], Sequence[Tensor]]) -> Tensor:
        losses, means = logit_losses(fake, [-1] * len(fake)).unbind(1)
        return losses.sum() if self.of_generator else -means.sum()

    def discriminator(self, real: Sequence[Tensor], fake: Sequence[Tensor]) -> DiscriminatorLoss:
        count = len(real)
        signs = [-1] * count + [1] * count
        losses, means = logit_losses([*real, *fake], signs, self.name).unbind(1)
        return DiscriminatorLoss(losses.sum(), means[:count].mean(), means[count:].mean())


NON_SATURATING: GanLoss = MarginLoss("softplus", of_generator=True)
HINGE: GanLoss = MarginLoss("hinge", of_generator=False)
RATIO: GanLoss = MarginLoss("softplus", of_generator=False)
"""The best D is ln p_data / p_generated, so L_G is the Kullback-Leibler divergence of the generated
images from the data. Where D sees diffused images (the backbone `self`), that is the class ratio of
diffused distributions, with projected heads; one with a classifier of its own is `score`'s form
`ratio` (`fasttrain.training.objectives.class_ratio`)."""


class RelativisticLoss:
    """softplus of how much less real the better image of a pair looks; the logits of a real image
    and of a fake are paired by their place, so both are of one class."""

    def generator(self, fake: Sequence[Tensor], real: Callable[[], Sequence[Tensor]]) -> Tensor:
        return self._margin(fake, real())

    def discriminator(self, real: Sequence[Tensor], fake: Sequence[Tensor]) -> DiscriminatorLoss:
        means = [torch.stack([x.float().mean() for x in logits]).mean() for logits in (real, fake)]
        return DiscriminatorLoss(self._margin(real, fake), *means)

    def _margin(self, better: Sequence[Tensor], worse: Sequence[Tensor]) -> Tensor:
        differences = [a.float() - b.float() for a, b in zip(better, worse, strict=True)]
        return logit_losses(differences, [-1] * len(differences))[:, 0].sum()


RELATIVISTIC: GanLoss = RelativisticLoss()


def generator_loss(
    fake: Sequence[Tensor],
    kind: str = "non_saturating",
    real: Callable[[], Sequence[Tensor]] = tuple,
) -> Tensor:
    """Scalar loss of the generator, of a `kind` of the registry; see `GanLoss.generator`."""
    loss: GanLoss = load(LOSSES[kind])
    return loss.generator(fake, real)


def discriminator_loss(
    *, real: Sequence[Tensor], fake: Sequence[Tensor], kind: str = "non_saturating"
) -> DiscriminatorLoss:
    """Loss of the discriminator from the logits, [N, L_b] for each backbone."""
    loss: GanLoss = load(LOSSES[kind])
    return loss.discriminator(real, fake)


def r1_penalty(
    discriminator: Callable[[Tensor, Tensor | None], Sequence[Tensor]],
    images: Tensor,
    class_labels: Tensor | None,
) -> Tensor:
    """Mean over the images of the squared norm of the gradient of all logits' sum, a scalar.

    images [N, ...], real; of fakes this is R2; class_labels [N, label_dim] or None.
    Differentiable in the discriminator's parameters (a double backward).
    """
    images = images.detach().requires_grad_()
    return squared_gradient(discriminator(images, class_labels), [images])


def squared_gradient(logits: Sequence[Tensor], inputs: Sequence[Tensor]) -> Tensor:
    """Mean over the images of the squared norm of the gradient of all logits' sum with respect to
    inputs [N, ...], of which it is the sum; a scalar. Differentiable."""
    total = torch.stack([backbone.sum() for backbone in logits]).sum()
    gradients = torch.autograd.grad(total, inputs, create_graph=True)
    return torch.stack([g.square().flatten(1).sum(1).mean() for g in gradients]).sum()


def approximated_r1(*, clean: Sequence[Tensor], noisy: Sequence[Tensor]) -> Tensor:
    """Mean squared difference of the logits of images with and without noise, [N, L_b] for
    each backbone, summed over backbones, a scalar. About sigma^2 times the mean squared norm of a
    logit's gradient; differentiable in the discriminator's parameters by one backward pass."""
    squares = [(a - b).float().square().mean() for a, b in zip(clean, noisy, strict=True)]
    return torch.stack(squares).sum()


def centring(*, real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Mean squared sum of the logits of a real image and of the fake in its place, [N, L_b] for
    each backbone, summed over backbones, a scalar."""
    squares = [(a.float() + b.float()).square().mean() for a, b in zip(real, fake, strict=True)]
    return torch.stack(squares).sum()
