"""MeanFlow training: a diffusion model learns the average velocity of its trajectories by the
identity of `training/objectives/meanflow.py`, alone or beside the GAN objective. It needs images,
no teacher, and ends as a one-step generator like any other, which fine-tuning can begin with:

    fasttrain meanflow digits-meanflow
    fasttrain finetune digits-d2o-f init=runs/digits-meanflow

The loop is `distill`'s, which serves any loss of a generator's own. The derivative along the
trajectory is a pass by itself, in float32 and on plain operators, because the fused ones have no
forward mode; the pass with a gradient runs as the settings say.

    meanflow(load_settings("digits-meanflow", [], MeanFlowSettings), start())
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fasttrain.data import Batch
from fasttrain.models.build import new_network
from fasttrain.models.second_time import SecondTime, check_second_time
from fasttrain.sampling.draws import Stream, latents
from fasttrain.settings.meanflow import MeanFlowSettings
from fasttrain.system.processes import World
from fasttrain.training.beside_gan import student_of
from fasttrain.training.distill import train
from fasttrain.training.log import report
from fasttrain.training.objectives import meanflow as objectives
from fasttrain_kernels import counter_uniform, using

__all__ = ["MeanFlow", "meanflow"]


@dataclass(frozen=True)
class MeanFlow:
    """The loss of one micro-batch.

    Attributes:
        network: the generator, called as a module, with its second time.
    """

    settings: MeanFlowSettings
    network: Any

    def loss(self, part: Batch, seed: int) -> Tensor:
        """Mean over the images, a scalar; also logs the squared error of the velocity."""
        settings, n = self.settings, len(part)
        normal = latents(seed, Stream.FLOW_LEVEL, part.index, (2,))
        uniform = counter_uniform(seed, int(Stream.FLOW_SHARE), part.index, (1,))[:, 0]
        when = objectives.times(
            normal,
            uniform,
            p_mean=settings.p_mean,
            p_std=settings.p_std,
            share=settings.share,
            highest=settings.sigma,
        )
        noise = latents(seed, Stream.FLOW_NOISE, part.index, part.images.shape[1:])
        x = (1 - when.t) * part.images + when.t * noise
        target = v = noise - part.images
        wide = (when.r < when.t).flatten()
        if wide.any():
            labels = None if part.class_labels is None else part.class_labels[wide]
            target = v.clone()
            target[wide] -= self._shortfall(x[wide], v[wide], when.of(wide), labels)
        own = objectives.velocity(self._denoiser(part.class_labels), x, when.s, when.r)
        error = own - target
        report("loss/velocity", error.detach().square().mean(), n)
        return objectives.adaptive(error, settings.power).mean()

    def _denoiser(self, labels: Tensor | None) -> objectives.Denoise:
        def denoise(x: Tensor, s: Tensor, interval: Tensor) -> Tensor:
            with self._second.told(interval):
                images: Tensor = self.network(x, s, labels)
            return images

        return denoise

    def _shortfall(
        self, x: Tensor, v: Tensor, when: objectives.Times, labels: Tensor | None
    ) -> Tensor:
        network, dtype = self.network, self.network.activation_dtype
        network.activation_dtype = torch.float32
        try:
            with using("reference"):
                return objectives.shortfall(self._denoiser(labels), x, v, when)
        finally:
            network.activation_dtype = dtype

    @property
    def _second(self) -> SecondTime:
        layer = self.network.model.get_submodule(self.network.model.noise_layer())
        second: SecondTime = layer.second
        return second


def meanflow(settings: MeanFlowSettings, world: World) -> None:
    """Train the run that the settings name, or resume it.

    Raises UserError for mistakes in data, base model, run directory or settings.
    """
    with torch.device("meta"):
        check_second_time(new_network("one_step", settings.network).model)
    with student_of(settings, world) as student:
        student.resume()
        with student.run:
            train(student, MeanFlow(settings, student.generator.module))
