"""MeanFlow (Geng et al., "Mean Flows for One-step Generative Modeling", arXiv 2505.13447): the
network learns the average velocity u over an interval r ... t of a flow's time,

    x_t = (1 - t) x0 + t e,      v = e - x0,      (t - r) u(x_t, r, t) = integral of v from r to t,

whose derivative by t is the identity that it is trained with, without any integral or teacher:

    u = v - (t - r) du/dt,       du/dt = v . grad_x u + d u / d t,
    L = |u - sg(v - (t - r) du/dt)|^2 / sg(|u - ...|^2 + c)^p.

du/dt is a Jacobian-vector product, one forward-mode pass. For most images r = t, which leaves flow
matching. A one-step generator is x0 = x_1 - u(x_1, 0, 1).

Here the network is a denoiser D(y; s), of any row of the preconditioning table, which is told
t - r as a second time (`fasttrain.models.second_time`). With s = t / (1 - t) and y = x_t / (1 - t)
= x0 + s e,

    u(x_t, r, t) = (x_t - D(y; s, t - r)) / t.

If r = t that is the velocity of the diffusion model, because D estimates x0 and x_t - x0 = t v; of
a network that predicts a flow's velocity u is F itself. If r = 0 then x_t - t u = D is where one
step ends, whatever the row. So the network begins as the diffusion model, whose velocity it takes
for that of any interval, and ends as the generator G(z) = D(s0 z; s0); EDM's rows start at s0 = 80,
which is t = 0.988. Logit-normal times are ln s ~ N(mean, deviation), as s = t / (1 - t). The
derivative is taken along s: with ds/dt = (1 + s)^2 nothing is divided by 1 - t.

Verified: the identity and the loss, on Gaussian data, whose average velocity is known. Not verified
are the paper's results, for which there are no weights at hand, and the authors' code: there a
transformer learns from random weights, in latents, here any network from a diffusion model, as a
warm-up; c = 1e-3 is the paper's, and its guidance, which changes v, is left out.

    when = times(normal, uniform, p_mean=-0.4, p_std=1.0, share=0.25, highest=80.0)
    target = v - shortfall(denoise, x, v, when)
    loss = adaptive(velocity(denoise, x, when.s, when.r) - target, power=1.0).mean()
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["Times", "adaptive", "shortfall", "times", "velocity"]

Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(y [N, C, H, W], noise levels s [N, 1, 1, 1], intervals t - r [N]) -> images [N, C, H, W]."""

LOWEST, HIGHEST = 0.002, 200.0
"""Noise levels between which times are drawn: where a one-step generator's row ends, and t = 0.995,
up to which differences of float32 numbers as large as s mean something."""
SMALLEST = 1e-3
"""c."""


class Times(NamedTuple):
    """Ends of the intervals of N images: the noise level s and the time t of the noisy one, and the
    time r of the other, [N, 1, 1, 1]."""

    s: Tensor
    t: Tensor
    r: Tensor

    def of(self, chosen: Tensor) -> Times:
        """Those of some images."""
        return Times(*(each[chosen] for each in self))


def times(
    normal: Tensor, uniform: Tensor, *, p_mean: float, p_std: float, share: float, highest: float
) -> Times:
    """Two logit-normal times of each image, in order; for all but a share of the images r = t.

    normal: draws [N, 2]. uniform: [N] in [0, 1). highest: noise level that no time is beyond.
    """
    levels = (p_mean + p_std * normal).exp().clamp(LOWEST, min(highest, HIGHEST))
    s, lower = levels.max(dim=1).values, levels.min(dim=1).values
    lower = torch.where(uniform < share, lower, s)
    s, lower = (each.view(-1, 1, 1, 1) for each in (s, lower))
    return Times(s, s / (1 + s), lower / (1 + lower))


def velocity(denoise: Denoise, x: Tensor, s: Tensor, r: Tensor) -> Tensor:
    """u(x_t, r, t) [N, C, H, W] at t = s / (1 + s); x [N, C, H, W] is x_t."""
    t = s / (1 + s)
    return (x - denoise((1 + s) * x, s, (t - r).flatten())) / t


@torch.no_grad()
def shortfall(denoise: Denoise, x: Tensor, v: Tensor, when: Times) -> Tensor:
    """(t - r) du/dt [N, C, H, W], which v is more than u by, a constant; x is x_t.

    `denoise` must have forward-mode derivatives.
    """
    length = when.t - when.r
    with sdpa_kernel(SDPBackend.MATH), dual_level():
        s = make_dual(when.s, length * (1 + when.s) ** 2)
        u = velocity(denoise, make_dual(x, length * v), s, when.r)
        along = unpack_dual(u).tangent
    assert along is not None, "the network does not depend on its input"
    return along


def adaptive(error: Tensor, power: float) -> Tensor:
    """The loss of each image [N] from its error [N, C, H, W]: the squared length, divided by its
    own value, as a constant, to a power. 0: plain squares; 1: all images count the same."""
    error = error.to(torch.promote_types(error.dtype, torch.float32))
    squares = error.square().flatten(1).sum(1)
    return squares / (squares.detach() + SMALLEST) ** power
