"""How a model generates images: the solver, its noise levels, and its description.

    sampler = Sampler.of(settings)                     # the one that a run is trained for
    sampler = Sampler.of(info, steps=256, churn="40,0.05,50,1.003")
    images = sampler(network, latents, class_labels)
    sampler.evaluations, sampler.title, sampler.detail      # 35, "18 Heun steps", ...

A one-step generator has one sampler, its own; a diffusion model is sampled with Heun steps, or in
one step for comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from fasttrain.models.files.model_file import ModelInfo
from fasttrain.sampling.solvers import heun_sampler, one_step, two_step
from fasttrain.settings import RunSettings
from fasttrain.settings.base import GradientThrough
from fasttrain.system.errors import UserError

__all__ = ["HEUN_STEPS", "Churn", "Sampler"]

HEUN_STEPS = 18
"""Default steps of a diffusion model: 35 evaluations, EDM's choice for small images."""


@dataclass(frozen=True)
class Churn:
    """EDM's stochasticity (table 5): S_churn, S_min, S_max and S_noise."""

    amount: float
    least: float = 0.0
    most: float = math.inf
    noise: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Churn:
        """`40` or `40,0.05,50,1.003`. Raises UserError on anything else."""
        try:
            churn = cls(*map(float, text.split(",")))
        except (TypeError, ValueError):
            churn = cls(math.nan)
        positive = 0 < churn.amount < math.inf and 0 < churn.noise < math.inf
        if not (positive and 0 <= churn.least < churn.most):
            raise UserError(
                f"--churn {text!r}: write it as S_churn or S_churn,S_min,S_max,S_noise, such as "
                f"40,0.05,50,1.003; S_churn and S_noise are positive, and S_min is below S_max"
            )
        return churn


@dataclass(frozen=True)
class Sampler:
    """A way to generate images, called `sampler(network, latents, class_labels)`.

    Attributes:
        kind: `few-step`: one evaluation at `sigma`, or a second one at `sigma_mid`; `heun`: EDM's
            solver of `steps` steps, stochastic with `churn`.
        gradient_through: which of two evaluations gradients flow through.
    """

    kind: Literal["few-step", "heun"] = "few-step"
    sigma: float = 80.0
    sigma_mid: float | None = None
    gradient_through: GradientThrough = "both"
    steps: int = HEUN_STEPS
    churn: Churn | None = None

    @classmethod
    def of(
        cls,
        model: RunSettings | ModelInfo,
        steps: int | None = None,
        churn: str | None = None,
    ) -> Sampler:
        """The sampler of a run or a model file, with the user's options.

        steps: Heun steps of a diffusion model, 18 by default; 1: one step from the highest noise.
        churn: in the format of `Churn.parse`.

        Raises UserError when an option does not apply to the model.
        """
        own = cls(sigma=model.network.prediction.start)
        if isinstance(model, ModelInfo):
            name, tuned = model.name, model.training.generator
            if tuned:
                own = cls("few-step", model.sigma or own.sigma, model.sigma_mid)
        else:
            name, tuned = model.run.name, model.few_step is not None
            if model.few_step is not None:
                own = cls("few-step", *model.few_step)
        what = f"{name} is a {own.adjective} generator"
        if tuned and steps not in (None, own.evaluations):
            raise UserError(f"{what}: leave --steps out, or name a diffusion run")
        if churn is not None and (tuned or steps == 1):
            why = what if tuned else "--steps 1 has none"
            raise UserError(f"--churn adds noise to Heun steps, and {why}: leave --churn out")
        if tuned or steps == 1:
            return own
        added = None if churn is None else Churn.parse(churn)
        return cls("heun", steps=steps or HEUN_STEPS, churn=added)

    @property
    def evaluations(self) -> int:
        """Evaluations of the network for an image."""
        if self.kind == "heun":
            return 2 * self.steps - 1
        return 1 if self.sigma_mid is None else 2

    @property
    def adjective(self) -> str:
        """`one-step`, `two-step` or `18-Heun-step`."""
        return self.title.removesuffix("s").replace(" ", "-")

    @property
    def title(self) -> str:
        """`one step`, `two steps`, `18 Heun steps`."""
        if self.kind == "heun":
            return f"{self.steps} Heun steps"
        return "one step" if self.sigma_mid is None else "two steps"

    @property
    def detail(self) -> str:
        """Everything that images depend on, in words."""
        if self.kind == "few-step":
            if self.sigma_mid is None:
                return f"{self.title} at noise level {self.sigma:g}"
            return f"{self.title} at noise levels {self.sigma:g} and {self.sigma_mid:g}"
        text = f"{self.title} ({self.evaluations} evaluations)"
        if self.churn is not None:
            churn = self.churn
            text += f", churn {churn.amount:g} from {churn.least:g} to {churn.most:g}"
            text += f", noise {churn.noise:g}"
        return text

    def __call__(
        self,
        network: Any,
        latents: Tensor,
        class_labels: Tensor | None = None,
        noise: Callable[[int], Tensor] | None = None,
    ) -> Tensor:
        """Images [N, C, H, W] float32 from unit-variance latents, differentiable for few-step
        samplers. noise: unit variance, for each step that churns."""
        if self.kind == "heun":
            churn = self.churn or Churn(0.0)
            return heun_sampler(
                network,
                latents,
                class_labels,
                num_steps=self.steps,
                s_churn=churn.amount,
                s_min=churn.least,
                s_max=churn.most,
                s_noise=churn.noise,
                noise=noise,
            )
        if self.sigma_mid is None:
            return one_step(network, latents, class_labels, sigma=self.sigma)
        return two_step(
            network,
            latents,
            class_labels,
            sigma=self.sigma,
            sigma_mid=self.sigma_mid,
            through=self.gradient_through,
        )
