"""Score distillation: the generator's images, with noise on them, must be as likely to the
diffusion model of the data, the teacher D_r, as to a diffusion model D_f of the generator's own
images, which is trained beside it. With x = G(z), x_t = x + t n and g = D_f(x_t; t) - D_r(x_t; t),

    dmd   dL/dx = g / mean |x - D_r|,                     no gradient through D_f and D_r
    sid   L = w (D_r - D_f) . ((D_r - x) - alpha (D_r - D_f)),      w = 1 / mean |x - D_r|,

means over pixels, w without a gradient. `dmd` is distribution matching: the difference of the
scores is the gradient of the Kullback-Leibler divergence between the noised distributions (Yin et
al., arXiv 2311.18828; DMD2: arXiv 2405.14867, which leaves out the regression on the teacher's
images). `sid` is score identity distillation (Zhou et al., arXiv 2404.04057), whose gradient goes
through both networks; beside a GAN term it is SiDA's (arXiv 2410.14919). D_f learns by EDM's loss
on the generator's images.

Levels t are those of EDM's grid, rho 7, at a uniform place between its 2nd and 98th hundredth, as
DMD's. Verified are the formulas, on Gaussian data, whose denoisers are known; not verified against
the published codes, which nobody here has run, are constants, such as these places, and the papers'
results. There the classifier sits on D_f's own features; here it is the projected discriminator.

Use:

    t = levels(uniform, 0.002, 80.0)
    loss = dmd(x, real=teacher(x + t * n, t), fake=score(x + t * n, t)).mean()
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["dmd", "levels", "sid"]

LOW, HIGH = 0.02, 0.98
"""Places in the grid from which levels are drawn."""
RHO = 7
SMALLEST = 1e-5
"""Least distance of an image from its estimate that a loss is divided by."""


def levels(uniform: Tensor, sigma_min: float, sigma_max: float) -> Tensor:
    """Noise levels [N, 1, 1, 1] float32 from draws [N] in [0, 1); 0: the lowest."""
    place = LOW + (HIGH - LOW) * uniform.double()
    low, high = sigma_min ** (1 / RHO), sigma_max ** (1 / RHO)
    return ((low + place * (high - low)) ** RHO).float().view(-1, 1, 1, 1)


def dmd(images: Tensor, *, real: Tensor, fake: Tensor) -> Tensor:
    """Half the mean square of the gradient that it has, up to the number of pixels, [N] float32.

    images: [N, C, H, W], differentiable; real, fake: the estimates of D_r and D_f, used without a
    gradient.
    """
    x, real, fake = images.float(), real.detach().float(), fake.detach().float()
    gradient = (fake - real) / _distance(x, real)
    target = (x - gradient).detach()
    return (x - target).square().flatten(1).mean(1) / 2


def sid(images: Tensor, *, real: Tensor, fake: Tensor, alpha: float) -> Tensor:
    """The loss of each image, [N] float32; of either sign. Estimates with a gradient in the images.
    alpha: the papers' are 1 and 1.2."""
    x, real, fake = images.float(), real.float(), fake.float()
    difference = real - fake
    product = difference * ((real - x) - alpha * difference)
    return (product / _distance(x, real)).flatten(1).mean(1)


def _distance(images: Tensor, real: Tensor) -> Tensor:
    """Mean over the pixels of how far an image is from its estimate, [N, 1, 1, 1]."""
    distance = (images - real).detach().abs().flatten(1).mean(1)
    return distance.clamp(min=SMALLEST).view(-1, 1, 1, 1)
