"""The diffusion model itself as a feature network: a frozen copy of what the generator began as
sees images, or latents, with noise on them, and heads judge the maps of several of its blocks
(Sauer et al., "Fast High-Resolution Image Synthesis with Latent Adversarial Diffusion
Distillation", arXiv 2403.12015).

    x = image + sigma n,        n ~ N(0, 1),        ln sigma ~ N(mean, deviation)

With t = sigma / (1 + sigma), a flow's time, that is a logit-normal t. Noise and level are functions
of the image's index in the run, the same for a real image and a fake in its place. A network says
in `judged()` which of its modules' outputs are looked at.

With `trained` the copy trains with its heads, up to the last of these modules, as the discriminator
of adversarial post-training does (APT: Lin et al., "Diffusion Adversarial Post-Training for
One-Step Video Generation", arXiv 2501.08316), beside the approximated R1 of that paper
(`training/objectives/gan.py`). Of APT that is the discriminator's start, what trains in it, its
loss and its penalty. Not verified, and different where said: there the heads are cross-attention
blocks on three layers of a transformer, here the projected discriminator's; there levels are
ensembled and the generator was distilled before, here images have noise of the level they are
looked at with, and the generator begins as whatever `init` is; and no result of the paper, whose
code and models are not published, has been reproduced.

    features = OwnFeatures(network, noise=(0.0, 1.0), seed=0)
    maps = features.look(images, class_labels, index, torch.float32)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from fasttrain.sampling.draws import Stream, latents

__all__ = ["OWN", "OwnFeatures", "Unmixed"]

OWN = "self"
"""Its name among `discriminator.backbones`."""
_EPS = 1e-4


class _Enough(Exception):
    """The last map is there: what the network would go on to compute is not needed."""


class OwnFeatures(nn.Module):
    """A denoiser's maps of noised images.

    Args:
        network: a preconditioned network, in evaluation mode from here on.
        noise: mean and deviation of ln sigma.
        seed: of the draws.
        trained: whether what heads judge trains; see `train_maps`.
    Attributes:
        name: its name among backbones.
        channels, map_resolutions: of the maps, in the order in which they are computed.
    """

    name, pyramid = OWN, False

    def __init__(
        self, network: Any, noise: tuple[float, float], seed: int, trained: bool = False
    ) -> None:
        super().__init__()
        self.network, self.trained = network.eval().requires_grad_(False), trained
        self.noise, self.seed = noise, seed
        sizes = network.model.judged()
        self.modules_seen = [name for name, _, _ in sizes]
        self.channels = tuple(channels for _, channels, _ in sizes)
        self.map_resolutions = tuple(side for _, _, side in sizes)

    def train_maps(self, count: int) -> None:
        """Have those parameters trained that the first maps depend on. Others would have no
        gradient, which ZeRO waits for."""
        network = self.network.requires_grad_(True)
        parameters, before = list(network.parameters()), network.activation_dtype
        side, device = network.img_resolution, parameters[0].device
        image = torch.zeros(1, network.img_channels, side, side, device=device)
        labels = torch.zeros(1, network.label_dim, device=device) if network.label_dim else None
        index = torch.zeros(1, dtype=torch.int64, device=device)
        with torch.enable_grad():
            maps = self.look(image, labels, index, torch.float32)[:count]
            total = torch.stack([m.sum() for m in maps]).sum()
            gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        network.activation_dtype = before
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode, whatever `mode`."""
        return super().train(False)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """Stays where its network was put, in its dtype."""
        return self

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in, unless something else is asked for."""
        dtype: torch.dtype = self.network.activation_dtype
        return dtype

    def look(
        self, images: Tensor, class_labels: Tensor | None, index: Tensor | None, dtype: torch.dtype
    ) -> list[Tensor]:
        """Images [N, C, H, W] as the generator makes them, one-hot class_labels [N, label_dim] or
        None, index int64 [N] (None, for measurements: draws of torch's) -> maps [N, channels, side,
        side] in `dtype`.

        Differentiable as often as the network is.
        """
        images = images.float()
        if index is None:
            level, noise = torch.randn_like(images[:, :1, :1, :1]), torch.randn_like(images)
        else:
            level = latents(self.seed, Stream.JUDGED_LEVEL, index, (1, 1, 1))
            noise = latents(self.seed, Stream.JUDGED_NOISE, index, images.shape[1:])
        mean, deviation = self.noise
        sigma = torch.exp(mean + deviation * level)
        sigma = sigma.clamp(max(self.network.sigma_min, 1e-3), min(self.network.sigma_max, 1e3))
        return self.maps(images + sigma * noise, sigma, class_labels, dtype)

    def maps(
        self, x: Tensor, sigma: Tensor, class_labels: Tensor | None, dtype: torch.dtype
    ) -> list[Tensor]:
        """The same of images that have their noise: x [N, C, H, W] of level sigma."""
        self.network.activation_dtype = dtype
        with self._caught() as maps:
            self.network(x, sigma, class_labels)
        sides = zip(maps, self.map_resolutions, strict=True)
        return [m if m.dim() == 4 else m.transpose(1, 2).unflatten(2, (s, s)) for m, s in sides]

    @contextmanager
    def _caught(self) -> Iterator[list[Tensor]]:
        """The outputs of the modules that are looked at, up to the last of them."""
        maps: list[Tensor] = []

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            maps.append(output[0] if isinstance(output, tuple) else output)  # beside statistics
            if len(maps) == len(self.channels):
                raise _Enough

        modules = dict(self.network.model.named_modules())
        hooks = [modules[name].register_forward_hook(keep) for name in self.modules_seen]
        try:
            yield maps
        except _Enough:
            pass
        finally:
            for hook in hooks:
                hook.remove()


class Unmixed(nn.Module):
    """In the place of a projector, for maps that are not each twice the size of the next: each
    [N, C, H, W] with a mean square of 1 over channels, because the sums inside of a transformer
    grow from block to block."""

    def __init__(self, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.out_channels = channels

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        squares = (m.float().square().mean(dim=1, keepdim=True) for m in maps)
        factors = (torch.rsqrt(square + _EPS) for square in squares)
        return [m * factor.to(m.dtype) for m, factor in zip(maps, factors, strict=True)]
