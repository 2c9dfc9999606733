"""The projected discriminator: images are judged on the features of frozen, pretrained networks,

    logits_b = heads_b(projector_b(features_b(images)), class_labels)     for each backbone b,

and only the heads train (Sauer et al., "Projected GANs Converge Faster", arXiv 2111.01007), but for
a copy of the diffusion model that trains with them (`OwnFeatures`).

Use:

    discriminator = ProjectedDiscriminator([features], label_dim=10, norm_group=16)
    with discriminator.frozen():                          # a generator step
        fake = discriminator(generated, class_labels)     # gradients reach `generated` only
    real, fake = discriminator.together([images, generated], class_labels)
    with discriminator.in_precision(torch.float32):       # R1, whatever the other steps use
        logits = discriminator(images, class_labels)      # [N, L_b] for each backbone
    discriminator.iterate_spectral_norm()                 # once after each discriminator step
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from fasttrain.discriminator.augment import random_crop
from fasttrain.discriminator.heads import Heads
from fasttrain.discriminator.norms import GhostBatchNorm, SpectralConv2d, iterate
from fasttrain.discriminator.own import OwnFeatures, Unmixed
from fasttrain.discriminator.peers import Peers
from fasttrain.discriminator.projector import Projector
from fasttrain.system.errors import UserError
from fasttrain_kernels import image_prep

__all__ = ["ProjectedDiscriminator"]

TRAINED = "trained_self"
"""Name among the heads of the network of a trained `OwnFeatures`."""


def _trains(network: Any) -> bool:
    return isinstance(network, OwnFeatures) and network.trained


class ProjectedDiscriminator(nn.Module):
    """Frozen feature networks, one frozen random projector and one set of trained heads for each.

    Args:
        features: the feature networks, each with a unique `name`: see
            `fasttrain.models.features.network.FeatureNetwork`. They are frozen here, but for a
            trained `OwnFeatures`.
        label_dim: number of classes, 0 for unconditional.
        norm_group: images that share batch norm statistics in the heads.
        seed: seed of the projectors (seed + k for backbone k), and of random crops.
        cout: channels of the first projected map, see `Projector`.
        resolutions: nominal resolutions of the heads, see `Heads`.
        width: channels of the heads at nominal resolution 8, see `Head`.
        class_embedding: [label_dim, F], initial values of every head's class embedding.
        decode: from what is judged to images, for the feature networks that see images; None where
            it is images.
        peers: processes that share each group of `norm_group` images, if one has fewer. Each must
            call the discriminator in the same order, with the same number of images.
    Attributes:
        features: the feature networks. They move with the module but are neither among its
            parameters nor in its state dict: they are read from their own weights. Only what
            trains of them is, among the heads.
        projectors, heads: by backbone name; all of `parameters()` is in `heads`.
        precision: dtype of all activations, images and logits included; None for that of the
            feature networks' weights. The heads' parameters keep their dtype and are cast at use.
    Raises:
        UserError: no feature network, or two of the same name; see also `Heads`.
    """

    features: tuple[Any, ...]

    def __init__(
        self,
        features: Sequence[Any],
        *,
        label_dim: int = 0,
        norm_group: int,
        seed: int = 0,
        cout: int = 64,
        resolutions: Sequence[int] = (128, 64, 32, 16),
        width: int = 512,
        class_embedding: Tensor | None = None,
        decode: Callable[[Tensor], Tensor] | None = None,
        peers: Peers | None = None,
    ) -> None:
        super().__init__()
        names = [network.name for network in features]
        if not names or len(set(names)) < len(names):
            raise UserError(
                f"feature networks {names}: the discriminator needs one or more, each only once"
            )
        self.label_dim = label_dim
        self.seed = seed
        self.precision: torch.dtype | None = None
        self.decode = decode
        self.features = tuple(
            network if _trains(network) else network.eval().requires_grad_(False)
            for network in features
        )
        self.projectors = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        for k, network in enumerate(self.features):
            projector = (
                Projector(network.channels, cout=cout, seed=seed + k)
                if network.pyramid
                else Unmixed(network.channels)
            )
            self.projectors[network.name] = projector
            self.heads[network.name] = Heads(
                projector.out_channels,
                resolutions=resolutions,
                norm_group=norm_group // (peers.size if peers else 1),
                width=width,
                label_dim=label_dim,
                class_embedding=class_embedding,
            )
            if _trains(network):
                network.train_maps(len(resolutions))
                self.heads[TRAINED] = network.network
        for norm in self._norms():
            norm.gather = peers.gather if peers else None

    def forward(
        self, images: Tensor, class_labels: Tensor | None = None, index: Tensor | None = None
    ) -> list[Tensor]:
        """Images [N, 1 or 3, H, W] in [-1, 1] or uint8, or latents, one-hot class_labels [N,
        label_dim] or None, index int64 [N] of the images in the run, for draws -> logits [N, L_b],
        one tensor for each backbone.

        Differentiable twice. Raises UserError when `norm_group` does not divide N, when labels are
        missing, or when a map is too small for its head.
        """
        return self.judge(self.look(images, class_labels, index), class_labels)

    def judge(
        self, maps: Sequence[Sequence[Tensor]], class_labels: Tensor | None = None
    ) -> list[Tensor]:
        """The logits of projected maps, those of each backbone, as `look` gives them."""
        return [
            self.heads[network.name](projected, class_labels)
            for network, projected in zip(self.features, maps, strict=True)
        ]

    def together(
        self,
        batches: Sequence[Tensor],
        class_labels: Tensor | None = None,
        index: Tensor | None = None,
    ) -> list[list[Tensor]]:
        """The logits of several batches of images with the same classes and indices, from one pass.

        Equal to separate passes, because batch norm has groups of images; but every weight is
        normalised, cast and differentiated once, and every kernel launched once.
        """
        labels = None if class_labels is None else class_labels.repeat(len(batches), 1)
        numbers = None if index is None else index.repeat(len(batches))
        logits = self(torch.cat(list(batches)), labels, numbers)
        return [list(parts) for parts in zip(*(x.chunk(len(batches)) for x in logits), strict=True)]

    def look(
        self, images: Tensor, class_labels: Tensor | None = None, index: Tensor | None = None
    ) -> list[list[Tensor]]:
        """The projected maps of each backbone. Where nothing before the heads trains, no graph is
        kept without a gradient for the images (a discriminator step)."""
        dtype = self.precision or self.features[0].dtype
        needed = images.requires_grad or TRAINED in self.heads
        with torch.set_grad_enabled(needed and torch.is_grad_enabled()):
            pretrained = [n for n in self.features if not isinstance(n, OwnFeatures)]
            seen = self.decode(images) if self.decode is not None and pretrained else images
            prepared: dict[str, Tensor] = {}
            for network in pretrained:
                if network.crops:
                    part = random_crop(seen, network.resolution, self.seed, index)
                    size = network.size(part)
                    prepared[network.name] = image_prep(part, size, [network.norm], dtype=dtype)[0]
            whole = [network for network in pretrained if not network.crops]
            for size in {network.size(seen) for network in whole}:
                alike = [network for network in whole if network.size(seen) == size]
                norms = [network.norm for network in alike]
                results = image_prep(seen, size, norms, dtype=dtype)
                prepared |= dict(zip((network.name for network in alike), results, strict=True))
            return [
                self.projectors[network.name](
                    network.look(images, class_labels, index, dtype)
                    if isinstance(network, OwnFeatures)
                    else network.maps(prepared[network.name])
                )
                for network in self.features
            ]

    def judged(self, maps: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Those of the projected maps that a head sees: with fewer heads than maps not all."""
        heads: list[Any] = [self.heads[network.name] for network in self.features]
        return [
            m for own, all_ in zip(heads, maps, strict=True) for m in all_[: len(own.mini_discs)]
        ]

    @contextmanager
    def in_precision(self, dtype: torch.dtype) -> Iterator[Self]:
        """Context in which everything is computed in `dtype`."""
        before, self.precision = self.precision, dtype
        try:
            yield self
        finally:
            self.precision = before

    @contextmanager
    def frozen(self) -> Iterator[Self]:
        """Context in which the heads, and what trains before them, collect no gradient; gradients
        still flow to the images."""
        trained = [parameter for parameter in self.heads.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.requires_grad_(False)
        try:
            yield self
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)

    @contextmanager
    def alone(self) -> Iterator[Self]:
        """Context without other processes: groups consist only of this process's images."""
        before = {norm: norm.gather for norm in self._norms()}
        for norm in before:
            norm.gather = None
        try:
            yield self
        finally:
            for norm, gather in before.items():
                norm.gather = gather

    def _norms(self) -> list[GhostBatchNorm]:
        return [m for m in self.heads.modules() if isinstance(m, GhostBatchNorm)]

    def iterate_spectral_norm(self) -> None:
        """One power iteration of every spectral norm: call it once after each optimizer step."""
        modules = self.heads.modules()
        iterate([m for m in modules if isinstance(m, SpectralConv2d)])

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """`.to()`, `.cuda()`, ...: also moves the unregistered feature networks."""
        super()._apply(fn, recurse)
        for network in self.features:
            network._apply(fn, recurse)
        return self
