"""A differentiable reward of generated images, beside the GAN objective of fine-tuning:

    L_G = L_GAN - weight * mean r(G(z), class).

One step reaches the image, so the gradient of r reaches the generator without a chain of sampling
steps (Clark et al., "Directly Fine-Tuning Diffusion Models on Differentiable Rewards",
arXiv 2309.17400, which goes back through the last steps of a sampler).

The reward that comes with the package, `own_class`, is the log-probability of an image's own class,

    r = log softmax_c( mu_c^T P x - mu_c^T P mu_c / 2 )[own],    P = ((1 - s) S + s tr(S) / F I)^-1,

by linear discriminant analysis (Fisher, 1936) of x, the features of a frozen network: mu_c are the
classes' means of real images, S is the covariance within classes, and s = 0.1 shrinks it. No
weights but the network's are needed, and nothing of it trains.

A metric that was optimised as a reward no longer measures quality. `own_class` says nothing of
diversity within a class: a large weight gives one good image of each class.

    reward = new_reward(settings, device)
    loss = loss - settings.reward.weight * reward(images, class_labels).mean()
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from fasttrain.data import RealImages
from fasttrain.models.features.network import FeatureNetwork, build_features
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.registry import REWARDS, load
from fasttrain.system.errors import UserError

__all__ = ["OwnClass", "Reward", "new_reward"]

A_CLASS = 200
"""Average images of each class of which the classes' means are taken."""
BATCH = 64
SHRINKAGE = 0.1


class Reward(Protocol):
    """A function of images and their classes that the generator makes larger."""

    @classmethod
    def of(cls, settings: FinetuneSettings, device: torch.device) -> Self:
        """That of a run. The same on every process and at each start, because it is not kept.
        Raises UserError for settings that it cannot serve."""

    def __call__(self, images: Tensor, class_labels: Tensor | None) -> Tensor:
        """Images [n, C, H, W] in [-1, 1], one-hot class_labels [n, label_dim] or None -> rewards
        [n], differentiable in the images."""


def new_reward(settings: FinetuneSettings, device: torch.device) -> Reward | None:
    """The reward that the settings name, if any. Raises UserError."""
    if settings.reward is None:
        return None
    kind: type[Reward] = load(REWARDS[settings.reward.name])
    return kind.of(settings, device)


@dataclass(frozen=True)
class OwnClass:
    """Log-probability of an image's own class; see above.

    Attributes:
        features: the frozen network.
        slopes, offsets: [F, label_dim] and [label_dim] float32, of the classes' logits.
    """

    features: FeatureNetwork
    slopes: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, settings: FinetuneSettings, device: torch.device) -> OwnClass:
        assert settings.reward is not None
        wanted, classes = settings.reward.features, settings.network.label_dim
        if not classes:
            raise UserError("reward: own_class needs classes, and the network has none")
        features = build_features(
            wanted.name, wanted.resolution, weights=wanted.weights, seed=settings.seed
        ).to(device)
        images = RealImages.of_run(settings, seed=settings.seed)
        left, parts = min(images.index.images, A_CLASS * classes), []
        with torch.no_grad():
            while left:
                batch = images.take(min(BATCH, left)).to(device)
                assert batch.class_labels is not None
                parts.append((pooled(features, batch.images), batch.class_labels))
                left -= len(batch)
        return cls(features, *discriminant(parts))

    def __call__(self, images: Tensor, class_labels: Tensor | None) -> Tensor:
        assert class_labels is not None
        logits = pooled(self.features, images) @ self.slopes + self.offsets
        return (logits.log_softmax(1) * class_labels).sum(1)


def pooled(features: FeatureNetwork, images: Tensor) -> Tensor:
    """Means of all maps of images [n, C, H, W] in [-1, 1] or uint8, [n, F] float32."""
    seen = images.float() if images.is_floating_point() else images
    return torch.cat([m.float().mean((2, 3)) for m in features(seen)], 1)


def discriminant(
    batches: Iterable[tuple[Tensor, Tensor]], shrinkage: float = SHRINKAGE
) -> tuple[Tensor, Tensor]:
    """Slopes [F, C] and offsets [C] float32 of the classes' logits by linear discriminant analysis,
    every class as likely. batches: (features [n, F], one-hot class_labels [n, C]), all on one
    device. Raises UserError for a class without images."""
    pairs: list[tuple[Any, Any]] = [(x.double(), labels.double()) for x, labels in batches]
    counts = torch.stack([labels.sum(0) for _, labels in pairs]).sum(0)
    if empty := (counts == 0).nonzero().flatten().tolist():
        raise UserError(
            f"reward: own_class needs images of each class, and class {empty[0]} has none among "
            f"the first {int(counts.sum())}"
        )
    means = torch.stack([labels.T @ x for x, labels in pairs]).sum(0) / counts[:, None]
    apart = [x - labels @ means for x, labels in pairs]
    within = torch.stack([x.T @ x for x in apart]).sum(0) / counts.sum()
    width = len(within)
    level = within.trace() / width
    shrunk = (1 - shrinkage) * within + shrinkage * level * torch.eye(width).to(within)
    slopes = torch.linalg.solve(shrunk, means.T)
    return slopes.float(), (-(means.T * slopes).sum(0) / 2).float()
