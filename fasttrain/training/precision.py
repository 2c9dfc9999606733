"""Effect of bfloat16 on a discriminator: the cosines of its logits and of its image gradients
between bfloat16 and float32, at the start of a run.

    agreement(discriminator, images, class_labels)   # {"lite0": {"logits": 0.9998, ...}}
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain.discriminator.projected import ProjectedDiscriminator
from fasttrain.training.objectives.gan import generator_loss

__all__ = ["agreement"]


def agreement(
    discriminator: ProjectedDiscriminator, images: Tensor, class_labels: Tensor | None
) -> dict[str, dict[str, float]]:
    """For each backbone the cosine of the logits of `images` [N, C, H, W] (about their mean), and
    of the gradient of the generator's loss with respect to the images."""
    exact, low = (
        _judged(discriminator, images, class_labels, dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    return {
        network.name: {
            "logits": _cosine(exact[k][0] - exact[k][0].mean(), low[k][0] - low[k][0].mean()),
            "gradient": _cosine(exact[k][1], low[k][1]),
        }
        for k, network in enumerate(discriminator.features)
    }


def _judged(
    discriminator: ProjectedDiscriminator,
    images: Tensor,
    class_labels: Tensor | None,
    dtype: torch.dtype,
) -> list[tuple[Tensor, Tensor]]:
    """Logits and image gradients of each backbone in a dtype."""
    images = images.detach().requires_grad_()
    with discriminator.frozen(), discriminator.in_precision(dtype):
        index = torch.arange(len(images), device=images.device)  # the same noise in both
        logits = discriminator(images, class_labels, index)
        return [
            (x.detach(), torch.autograd.grad(generator_loss([x]), images, retain_graph=True)[0])
            for x in logits
        ]


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(F.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0))
