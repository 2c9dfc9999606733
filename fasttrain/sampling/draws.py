"""Every random draw, by purpose. A draw is a function of (seed, stream, index of the image), so it
does not depend on ranks, batch sizes or restarts, and there is no random state to save.

    z = latents(settings.seed, Stream.GENERATOR, batch.index, (1, 8, 8))
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import torch

from fasttrain_kernels import counter_normal

__all__ = ["Stream", "churn_noise", "latents", "sample_latents"]


class Stream(IntEnum):
    """Purpose of a draw. The numbers affect the results: never change or reuse one."""

    SAMPLES = 0
    """Latents of the images of `sample` and `evaluate`; the index is the image's seed."""
    GENERATOR = 1
    """Latents of the generator step."""
    DISCRIMINATOR = 2
    """Latents of the discriminator step."""
    NOISE_LEVEL = 3
    """ln sigma of diffusion training."""
    NOISE = 4
    """Noise added to the images in diffusion training."""
    AUGMENT_GENERATOR = 5
    """Augmentation of the generator step's fakes."""
    AUGMENT_FAKE = 6
    """Augmentation of the discriminator step's fakes."""
    AUGMENT_REAL = 7
    """Augmentation of the discriminator step's real images."""
    AUGMENT_R1 = 8
    """Augmentation of the real images of an exact R1 step."""
    R1_NOISE = 9
    """Noise added to the real images by the approximated R1."""
    EDM_AUGMENT = 10
    """Uniform draws of pre-training's augmentation."""
    EDM_AUGMENT_NORMAL = 11
    """Normal draws of pre-training's augmentation."""
    CHURN = 12
    """Noise that Heun steps add to the images of `sample` and `evaluate`; the seed is the step."""
    R2 = 13
    """Latents of the fakes of an exact R2 step."""
    AUGMENT_R2 = 14
    """Augmentation of the fakes of an exact R2 step."""
    R2_NOISE = 15
    """Noise added to the fakes by the approximated R2."""
    DISTILLATION_LEVEL = 16
    """Uniform draws of the noise levels of distillation."""
    DISTILLATION_NOISE = 17
    """Noise added to the images in distillation."""
    POSTERIOR = 18
    """Draws from the distributions that an autoencoder made of images."""
    FLIP = 19
    """Uniform draws that choose between an image's latents and those of its mirror image."""
    JUDGED_LEVEL = 20
    """ln sigma of the noise on what the diffusion model judges as a feature network."""
    JUDGED_NOISE = 21
    """That noise."""
    CROP = 22
    """Uniform draws of the place of what a feature network sees of a large image."""
    SCORE_LEVEL = 23
    """Uniform draws of the noise levels of score distillation."""
    SCORE_NOISE = 24
    """Noise added to the generated images there."""
    FAKE_LEVEL = 25
    """ln sigma of the training of its fake-score network."""
    FAKE_NOISE = 26
    """Noise added to the generated images in that training."""
    RATIO_LEVEL = 27
    """ln sigma of the noise on the generated images of a generator's step by the class ratio."""
    RATIO_NOISE = 28
    """Noise added to the real images in the training of the classifier there."""
    FLOW_LEVEL = 29
    """ln sigma of both ends of an interval of MeanFlow training."""
    FLOW_SHARE = 30
    """Uniform draws that choose whether the interval has a length."""
    FLOW_NOISE = 31
    """Noise of the images there."""


def latents(seed: int, stream: int, index: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Standard normal latents [len(index), *shape], float32, on the device of `index` (int64)."""
    return counter_normal(seed, int(stream), index, tuple(shape), device=index.device)


def sample_latents(index: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Latents of the images with these seeds (int64 [N]): the same for every model and run."""
    return latents(0, Stream.SAMPLES, index, shape)


def churn_noise(index: torch.Tensor, step: int, shape: Sequence[int]) -> torch.Tensor:
    """Noise that a step of a stochastic sampler adds to the images with these seeds (int64 [N])."""
    return latents(step, Stream.CHURN, index, shape)
