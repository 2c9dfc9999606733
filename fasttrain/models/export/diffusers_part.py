"""The diffusers side of an exported pipeline: a model and a pipeline around `plain_generator` and a
network's plain form, here the U-Nets'.

What is below the line goes into exported pipelines as it is; fasttrain itself never imports this.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, DiffusionPipeline, ImagePipelineOutput, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import is_accelerate_available
from PIL import Image
from torch import Tensor

from fasttrain.models.export.plain_generator import DATA, EPS, one_hot, one_step, seed_latents
from fasttrain.models.export.plain_unet import FLOAT32, build_plain

# ---------------------------------------------------------------- copied into exports from here


class OneStepUNet(ModelMixin, ConfigMixin):
    """The network, with its settings as `config.json` and its weights under the published names."""

    # Without accelerate, buffers keep their dtype by themselves.
    _keep_in_fp32_modules = FLOAT32 if FLOAT32 and is_accelerate_available() else None

    @register_to_config
    def __init__(self, network: dict[str, Any]) -> None:
        super().__init__()
        said = network.get("prediction", {})
        self.scalings = {"data": said.get("sigma_data", DATA), "eps": said.get("eps", EPS)}
        arguments = {name: value for name, value in network.items() if name != "prediction"}
        self.model = build_plain(**arguments)

    def forward(
        self, z: Tensor, labels: Tensor | None, sigma: float, sigma_mid: float | None = None
    ) -> Tensor:
        return one_step(self.model, z, labels, sigma=sigma, sigma_mid=sigma_mid, **self.scalings)


def noise(
    count: int,
    shape: Sequence[int],
    generator: torch.Generator | Sequence[torch.Generator] | None,
) -> Tensor:
    """Latents [count, *shape] from where the generators are."""
    if generator is None or isinstance(generator, torch.Generator):
        device = None if generator is None else generator.device
        return torch.randn((count, *shape), generator=generator, device=device)
    if len(generator) != count:
        raise ValueError(f"{len(generator)} generators for {count} images: give one for each")
    return torch.cat([noise(1, shape, each) for each in generator])


def class_numbers(
    given: int | str | Sequence[int | str] | Tensor, count: int, classes: int, names: Sequence[str]
) -> list[int]:
    """The classes of `count` images, from one number or name for all or one for each."""
    if isinstance(given, str) or (
        isinstance(given, list | tuple) and given and isinstance(given[0], str)
    ):
        words = [given] * count if isinstance(given, str) else list(given)
        if unknown := [word for word in words if word not in names]:
            raise ValueError(f"class_labels: {unknown[0]!r} is not one of {', '.join(names)}")
        given = [names.index(word) for word in words]
    found = torch.as_tensor(given)
    whole = not (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool)
    numbers = found.flatten().tolist() * (count if found.dim() == 0 else 1)
    if not whole or len(numbers) != count or not all(0 <= n < classes for n in numbers):
        raise ValueError(
            f"class_labels: give {count} whole numbers, or one for all, of the {classes} classes"
        )
    return numbers


OUTPUTS = ("pil", "np", "pt", "raw")


def check_whole(name: str, given: Any) -> None:
    """Raises ValueError for anything but None and a whole number from 1 on."""
    whole = isinstance(given, int) and not isinstance(given, bool)
    if given is not None and not (whole and given >= 1):
        raise ValueError(f"{name} is {given!r}: give a whole number from 1 on")


class OneStepPipeline(DiffusionPipeline):
    """Images in one evaluation of a network (two where the model was made so)."""

    model_cpu_offload_seq = "unet"

    def __init__(
        self,
        unet: Any,
        sigma: float = 80.0,
        sigma_mid: float | None = None,
        class_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet)
        self.register_to_config(sigma=sigma, sigma_mid=sigma_mid, class_names=list(class_names))

    def save_pretrained(self, save_directory: Any, *args: Any, **options: Any) -> Any:
        """Write the folder again, with this file in it, so that it loads as this one did."""
        done = super().save_pretrained(save_directory, *args, **options)
        folder, source = Path(save_directory), Path(__file__)
        for place in (folder, folder / "unet"):
            if place.resolve() != source.parent.resolve():
                shutil.copyfile(source, place / "pipeline.py")
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        index |= {"_class_name": ["pipeline", "OneStepPipeline"]}
        index |= {"unet": ["pipeline", "OneStepUNet"]}
        (folder / "model_index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")
        return done

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: int | str | Sequence[int | str] | Tensor | None = None,
        seeds: Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        num_inference_steps: int | None = None,
    ) -> Any:
        """Make images.

        Args:
            batch_size: how many, where `seeds` does not say it.
            class_labels: a class, by number or name, for all or one for each; without, the classes
                in turn.
            seeds: each makes the same image as in fasttrain, in any batch and on any device.
            generator: of the noise, where there are no seeds: one for all, or one for each.
            output_type: "pil", "np" ([N, H, W, C] in [0, 1]), "pt" (the same as [N, C, H, W]) or
                "raw" (what the network gives, about [-1, 1]).
            num_inference_steps: accepted as of other pipelines; this model has its own number, and
                another one is warned of.
        """
        check_whole("num_inference_steps", num_inference_steps)
        if output_type not in OUTPUTS:
            raise ValueError(f"output_type {output_type!r}: choose one of {', '.join(OUTPUTS)}")
        if seeds is None:
            check_whole("batch_size", batch_size)
        steps = 1 if self.config.sigma_mid is None else 2
        if num_inference_steps not in (None, steps):
            warnings.warn(f"this model makes images in {steps} step(s)", stacklevel=2)
        network = self.unet.config["network"]
        size, classes = network["img_resolution"], network["label_dim"]
        shape = (network["img_channels"], size, size)
        numbers = list(range(batch_size) if seeds is None else seeds)
        if not numbers:
            raise ValueError("seeds: name at least one")
        z = noise(len(numbers), shape, generator) if seeds is None else seed_latents(numbers, shape)
        labels = None
        if class_labels is not None:
            numbers = class_numbers(class_labels, len(z), classes, self.config.class_names)
        if classes:
            labels = one_hot([number % classes for number in numbers], classes).to(self.device)
        images = self.unet(z.to(self.device), labels, self.config.sigma, self.config.sigma_mid)
        made = self._as_asked(images.float().cpu(), output_type)
        return ImagePipelineOutput(images=made) if return_dict else (made,)

    def _as_asked(self, images: Tensor, output_type: str) -> Any:
        if output_type == "raw":
            return images
        levels = ((images + 1) * 127.5).round().clamp(0, 255)
        if output_type == "pt":
            return levels / 255
        if output_type == "np":
            return (levels / 255).permute(0, 2, 3, 1).numpy()
        pixels = levels.to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return [Image.fromarray(p[:, :, 0] if p.shape[2] == 1 else p) for p in pixels]
