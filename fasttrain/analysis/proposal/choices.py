"""The choices of a new pair of recipes, each with its reason.

    choices = choose(survey, gpu=False)
    choices.network["model_channels"].value, choices.network["model_channels"].why

Values are those of the recipes that come with fasttrain for the nearest data: `fashion-mnist-cpu`
on a CPU, `emoji64` (after EDM's and D2O's published settings) on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from fasttrain.system.errors import UserError
from fasttrain_data.survey import Survey

__all__ = ["LARGEST", "Choice", "Choices", "choose", "resolution_for"]

FEWEST = 16
"""Images below which there is nothing to train on, and no two sets to compare."""
LARGEST = {False: 32, True: 64}
"""Largest resolution that is proposed without being asked for, on a CPU and on a GPU."""


@dataclass(frozen=True)
class Choice:
    """A value of a recipe, and the reason in a few words."""

    value: Any
    why: str = ""


@dataclass(frozen=True)
class Choices:
    """Both recipes' values, by the names of their settings; `images` is chosen when the machine has
    been measured."""

    gpu: bool
    network: dict[str, Choice]
    pretrain: dict[str, Choice]
    finetune: dict[str, Choice]
    evaluate: dict[str, Choice] = field(default_factory=dict)

    def in_parts(self, task: str, micro_batch: int) -> Choices:
        """The same with batches of a task in parts, because a whole one does not fit the GPU."""
        rows: dict[str, Choice] = {}
        for name, choice in getattr(self, task).items():
            rows[name] = choice
            if name == "batch":
                why = f"images at once: {2 * micro_batch} did not fit this GPU's memory"
                rows["micro_batch"] = Choice(micro_batch, why)
        return replace(self, pretrain=rows) if task == "pretrain" else replace(self, finetune=rows)


def resolution_for(survey: Survey, gpu: bool) -> Choice:
    """Pixels a side that images are made, from their sizes and the machine."""
    most = LARGEST[gpu]
    if survey.square is not None and survey.square <= most and survey.square % 4 == 0:
        return Choice(survey.square, "as the images are")
    low = survey.side(0.1)
    sizes = [size for size in (8, 16, 32, 64) if size <= most]
    fitting = [size for size in sizes if size <= low] or sizes[:1]
    if fitting[-1] == most:
        machine = "a GPU" if gpu else "a CPU"
        return Choice(most, f"what {machine} trains in reasonable time; --resolution N for another")
    return Choice(fitting[-1], f"a tenth of the images are smaller than {2 * fitting[-1]}")


def choose(survey: Survey, resolution: Choice, *, gpu: bool) -> Choices:
    """Raises UserError for a set or a resolution that nothing can be trained on."""
    size, classes = resolution.value, len(survey.classes)
    if survey.images < FEWEST:
        raise UserError(f"{survey.place} has {survey.images} images: {FEWEST} are the least")
    if size % 4 or not 8 <= size <= 256:
        raise UserError(f"--resolution {size}: use a multiple of 4 from 8 to 256")
    levels = 2 if size <= 8 else 3 if size <= 32 else 4
    while (size >> (levels - 1)) << (levels - 1) != size:  # each level halves the resolution
        levels -= 1
    lowest = size >> (levels - 1)
    sizes = [size >> level for level in range(levels)]
    attention = next((side for side in sizes if side <= 16), lowest) if gpu else lowest
    small = survey.images < 60_000 and gpu
    network = {
        "model_type": Choice("SongUNet", "DDPM++, of EDM's recipes below 64x64 and of AFHQv2's"),
        "img_resolution": resolution,
        "img_channels": Choice(survey.channels, "grey" if survey.channels == 1 else "colour"),
        "label_dim": Choice(
            classes if classes > 1 else 0,
            "the classes of the images" if classes > 1 else "one class: unconditional",
        ),
    }
    if small:
        network["augment_dim"] = Choice(9, "the network is told how images were augmented")
    network |= {
        "model_channels": Choice(96 if gpu else 32, "width; twice as much is four times the work"),
        "channel_mult": Choice(
            [1, *[2] * (levels - 1)], f"levels of {size} down to {lowest} pixels"
        ),
        "num_blocks": Choice(2 if gpu else 1, "residual blocks of a level"),
        "attn_resolutions": Choice([attention], "self-attention on these maps"),
        "dropout": Choice(
            0.25 if small else 0.0, "of pre-training, for few images" if small else ""
        ),
    }
    return Choices(
        gpu, network, _pretrain(small, gpu), _finetune(survey, size, gpu), _evaluate(survey)
    )


def _pretrain(small: bool, gpu: bool) -> dict[str, Choice]:
    rate = 2.0e-4 if gpu else 1.0e-3
    ramp, half_life = (1_000_000, 500_000) if gpu else (5_000, 4_000)
    choices = {
        "batch": Choice(256 if gpu else 64, "images of an iteration"),
        "optimizer": Choice(
            {"rate": rate, "betas": [0.9, 0.999], "ramp_up": ramp},
            "Adam; the rate grows over the first ramp_up images",
        ),
        "ema": Choice({"half_life": half_life}, "of the average, which is what is used, in images"),
    }
    if small:
        choices["augment"] = Choice(0.15, "EDM's augmentation for small sets; it does not leak")
    return choices


def _finetune(survey: Survey, size: int, gpu: bool) -> dict[str, Choice]:
    seen = 224 if gpu else 64 if size <= 8 else 96
    judge: dict[str, Any] = {"backbones": [{"name": "lite0", "resolution": seen}]}
    if survey.images < 10_000:
        judge["augment"] = ["translation", "cutout"]
    if gpu:
        judge |= {"norm_group": 64, "optimizer": {"rate": 4.0e-5}}
    else:
        judge |= {"resolutions": [64, 32, 16], "width": 256, "norm_group": 16}
        judge["optimizer"] = {"rate": 2.0e-4}
    few = "; augmentation, because it would memorise so few images" if "augment" in judge else ""
    half_life = {"half_life": 500_000} if gpu else {"half_life": 2_000, "fraction": 0.25}
    return {
        "freeze": Choice(1, "D2O-F: the blocks' 3x3 convolutions stay as pre-training made them"),
        "batch": Choice(256 if gpu else 64, "images of an iteration"),
        "generator": Choice({"rate": 2.0e-5 if gpu else 3.0e-4}, "Adam of the generator"),
        "discriminator": Choice(
            judge, f"heads on EfficientNet-Lite0's features of images at {seen}x{seen}{few}"
        ),
        "r1": Choice({"gamma": 1.5625e-6 if gpu else 3.0e-4}, "gradient penalty on real images"),
        "ema": Choice(half_life, "of the average, in images"),
    }


def _evaluate(survey: Survey) -> dict[str, Choice]:
    samples = min(survey.images // 2, 2_000)
    components = {"components": 64 if samples > 64 else None}
    return {
        "samples": Choice(samples, "generated images, beside as many real ones"),
        "components": Choice(components["components"], "of the Frechet distance"),
    }
