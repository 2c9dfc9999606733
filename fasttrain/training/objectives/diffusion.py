"""The diffusion (denoising) objective of EDM, the generative pre-training of a one-step generator:

    sigma = exp(P_mean + P_std z),   z ~ N(0, 1) per image
    lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2
    L = lambda(sigma) (D(y + sigma n; sigma) - y)^2,   n ~ N(0, I)

(Karras et al., arXiv 2206.00364, equation 2 and table 1). The draws are arguments, because a run
derives them from its seed and the index of each image.

Use: `edm_loss(net, images, rnd_normal, noise, class_labels).mean()`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

__all__ = ["edm_loss"]


def edm_loss(
    net: Callable[..., Tensor],
    images: Tensor,
    rnd_normal: Tensor,
    noise: Tensor,
    class_labels: Tensor | None = None,
    augment_labels: Tensor | None = None,
    *,
    p_mean: float = -1.2,
    p_std: float = 1.2,
    sigma_data: float = 0.5,
) -> Tensor:
    """The loss of each pixel, unreduced.

    Args:
        net: denoiser, called `net(x, sigma, class_labels, augment_labels)`.
        images: [N, C, H, W] float32 in [-1, 1].
        rnd_normal: N standard normal numbers in any shape, which choose the noise levels.
        noise: [N, C, H, W], unit variance.
    Returns:
        [N, C, H, W] float32, differentiable once and more.
    """
    sigma = (rnd_normal.reshape(-1, 1, 1, 1) * p_std + p_mean).exp()
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    denoised = net(images + noise * sigma, sigma, class_labels, augment_labels)
    return weight * (denoised - images) ** 2
