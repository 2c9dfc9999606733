"""OpenAI's guided-diffusion (ADM), their consistency models, and what grew out of the same U-Net:
a plain state dict whose names are those of `UNetModel`.

The U-Net is our DhariwalUNet by other names. Blocks are counted instead of named, so that the
levels are told from where the decoder doubles. The file does not say how an attention's rows are
divided: (head, 3, d) in ADM's first order, (3, head, d) in its new one and in the consistency
models (whose weights have a fourth dimension); EDM's, and ours, are (head, d, 3).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fasttrain.models.files.families.foreign import Foreign
from fasttrain.models.files.families.latents import latents_of, learns_variance
from fasttrain.models.files.families.options import Options
from fasttrain.system.errors import UserError

__all__ = ["is_adm", "read_adm", "unet_of"]

GROUPS = 32
"""Of every norm of this U-Net."""
MAX_BLOCKS = 1000

RESIDUAL = {
    "in_layers.0": "norm0",
    "in_layers.2": "conv0",
    "emb_layers.1": "affine",
    "out_layers.0": "norm1",
    "out_layers.3": "conv1",
    "skip_connection": "skip",
}
ATTENTION = {"norm": "norm2", "qkv": "qkv", "proj_out": "proj"}
TOP = {
    "time_embed.0": "map_layer0",
    "time_embed.2": "map_layer1",
    "out.0": "out_norm",
    "out.2": "out_conv",
}


def is_adm(names: Mapping[str, Any]) -> bool:
    return "input_blocks.0.0.weight" in names and "time_embed.0.weight" in names


def read_adm(tensors: Mapping[str, Tensor], options: Options) -> Foreign:
    """A diffusion model of guided-diffusion, or a model of the consistency models' code."""
    qkv = [value for name, value in tensors.items() if name.endswith(".qkv.weight")]
    consistency = bool(qkv) and qkv[0].dim() == 4
    options.refuse("num_heads_upsample", -1, options.get("num_heads"), why="it has others")
    new_order = consistency or options.truth(
        "use_new_attention_order", why="the order of its attention's rows"
    )
    size = options.integer("image_size", why="the size of its images")
    network, weights = unet_of(tensors, options, size, new_order)
    channels, sigma = network["img_channels"], None
    if channels == 6:
        raise UserError(f"{options.path} is refused: it is an upsampler, which sees an image, too")
    learned = learns_variance(options.path, channels, tensors["out.2.weight"].shape[0])
    latents = latents_of(options, channels)
    if consistency:
        sigma, prediction = _consistency(options)
        name = "a consistency model of OpenAI's"
        if sigma is None:
            name = "a diffusion model of OpenAI's consistency models"
    else:
        prediction = _diffusion(options)
        name = "a diffusion model of OpenAI's guided-diffusion"
    prediction["learned_variance"] = learned
    options.check_used("a model of guided-diffusion or of the consistency models")
    return Foreign(name, network | {"prediction": prediction}, weights, sigma, latents)


def _diffusion(options: Options) -> dict[str, Any]:
    """guided-diffusion's schedule, whose betas are scaled to the number of steps."""
    steps = options.integer("diffusion_steps", 1000)
    betas = options.choice("noise_schedule", ("linear", "cosine"), why="its noise schedule")
    rescaled = options.truth("rescale_timesteps", False)
    return {
        "kind": "x0" if options.truth("predict_xstart", False) else "epsilon",
        "time": "steps",
        "scale": 1000 / steps if rescaled else 1.0,
        "betas": betas,
        "steps": steps,
        "beta_start": 0.0001 * 1000 / steps,
        "beta_end": 0.02 * 1000 / steps,
    }


def _consistency(options: Options) -> tuple[float | None, dict[str, Any]]:
    """Karras' preconditioning with another time, and of a distilled model another boundary."""
    low, high = options.number("sigma_min", 0.002), options.number("sigma_max", 80.0)
    said = None
    if options.get("one_step") is None:
        mode = options.choice(
            "training_mode",
            ("edm", "progdist", "consistency_distillation", "consistency_training"),
            why="whether it is a diffusion model (edm) or a one-step generator",
        )
        said = mode.startswith("consistency")
    one_step = options.truth("one_step", said)
    prediction = {"kind": "edm", "time": "log", "scale": 250.0, "sigma_max": high}
    prediction |= {"sigma_min": low, "eps": low if one_step else 0.0}
    return (options.number("sigma", high) if one_step else None), prediction


def unet_of(
    tensors: Mapping[str, Tensor], options: Options, size: int, new_order: bool
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings and the weights of a `UNetModel`.

    Raises UserError when its names are not those of one.
    """
    path = options.path
    blocks = _blocks(tensors, path)
    ups = [i for i in range(blocks["output_blocks"]) if _doubles(tensors, i)]
    levels = len(ups) + 1
    each = blocks["output_blocks"] // levels
    inputs = 1 + levels * (each - 1) + levels - 1
    if blocks["output_blocks"] != levels * each or blocks["input_blocks"] != inputs:
        raise UserError(
            f"{path}: its blocks are not those of a U-Net of ADM's with {levels} levels"
        )
    if size % 2 ** (levels - 1):
        raise UserError(f"image_size={size} cannot be halved {levels - 1} times")

    heads = _Heads(options)
    weights: dict[str, Tensor] = {}
    widths: list[int] = []
    attended: list[int] = []

    def copy(source: str, target: str, names: Mapping[str, str], heads_of: int = 0) -> bool:
        """Rename what lies below a prefix; whether there was anything."""
        any_ = False
        for theirs, ours in names.items():
            for kind in ("weight", "bias"):
                value = tensors.get(f"{source}.{theirs}.{kind}")
                if value is None:
                    continue
                any_ = True
                if theirs == "qkv":
                    value = _rows(value, heads_of, new_order)
                if theirs in ("qkv", "proj_out") and kind == "weight":
                    value = value.reshape(*value.shape[:2], 1, 1)
                weights[f"model.{target}.{ours}.{kind}"] = value
        return any_

    def block(source: str, target: str) -> bool:
        """A residual block and its attention; whether it has one."""
        if not copy(f"{source}.0", target, RESIDUAL):
            raise UserError(f"{path}: its {source} is no residual block of ADM's")
        width = tensors[f"{source}.0.out_layers.3.weight"].shape[0]
        if f"{source}.1.qkv.weight" not in tensors:
            return False
        return copy(f"{source}.1", target, ATTENTION, heads.of(width))

    kinds: set[str] = set()

    def resample(source: str, target: str) -> None:
        if f"{source}.in_layers.0.weight" in tensors:
            kinds.add("block")
            copy(source, target, RESIDUAL)
        elif copy(source, target, {"op": "conv", "conv": "conv"}):
            kinds.add("conv")
        else:
            raise UserError(f"{path}: its {source} halves or doubles in an unknown way")

    copy("input_blocks.0", "enc", {"0": f"{size}x{size}_conv"})
    index = 1
    for level in range(levels):
        res = size >> level
        if level:
            resample(f"input_blocks.{index}.0", f"enc.{res}x{res}_down")
            index += 1
        for number in range(each - 1):
            source = f"input_blocks.{index}"
            if block(source, f"enc.{res}x{res}_block{number}") and res not in attended:
                attended.append(res)
            index += 1
        widths.append(tensors[f"input_blocks.{index - 1}.0.out_layers.3.weight"].shape[0])
    res = size >> (levels - 1)
    copy("middle_block.0", f"dec.{res}x{res}_in0", RESIDUAL)
    copy("middle_block.1", f"dec.{res}x{res}_in0", ATTENTION, heads.of(widths[-1]))
    copy("middle_block.2", f"dec.{res}x{res}_in1", RESIDUAL)
    index = 0
    for level in reversed(range(levels)):
        res = size >> level
        for number in range(each):
            source = f"output_blocks.{index}"
            has = block(source, f"dec.{res}x{res}_block{number}")
            if level and number == each - 1:
                above = size >> (level - 1)
                resample(f"{source}.{1 + has}", f"dec.{above}x{above}_up")
            index += 1
    for theirs, ours in TOP.items():
        for kind in ("weight", "bias"):
            weights[f"model.{ours}.{kind}"] = tensors[f"{theirs}.{kind}"]
    classes = tensors.get("label_emb.weight")
    if classes is not None:
        weights["model.map_label.weight"] = classes.T.contiguous()
    if len(weights) != len(tensors):
        raise UserError(f"{path}: it has weights that are none of a U-Net of ADM's")
    if len(kinds) > 1:
        raise UserError(f"{path}: it halves and doubles in different ways")

    emb, noise = tensors["time_embed.0.weight"].shape
    unit = math.gcd(emb, *widths)
    affine = weights[f"model.enc.{size}x{size}_block0.affine.weight"].shape[0]
    return {
        "model_type": "DhariwalUNet",
        "img_resolution": size,
        "img_channels": tensors["input_blocks.0.0.weight"].shape[1],
        "label_dim": 0 if classes is None else classes.shape[0],
        "model_channels": unit,
        "channel_mult": tuple(width // unit for width in widths),
        "channel_mult_emb": emb // unit,
        "num_blocks": each - 1,
        "attn_resolutions": tuple(attended),
        "dropout": 0.0,
        "options": heads.options
        | {
            "norm_groups": GROUPS,
            "adaptive_scale": affine == 2 * widths[0],
            "resample": next(iter(kinds), "block"),
            "noise_channels": noise,
        },
    }, weights


class _Heads:
    """Heads of an attention: a number, or so many channels each."""

    def __init__(self, options: Options) -> None:
        channels = options.integer("num_head_channels", -1)
        self.path = options.path
        self.channels = channels
        self.number = 0
        if channels == -1:
            self.number = options.integer(
                "num_heads", why="the heads of its attention (num_heads or num_head_channels)"
            )
            if self.number < 1:
                raise UserError(f"num_heads={self.number}: it must be at least 1")
        elif channels < 1:
            raise UserError(f"num_head_channels={channels}: it must be at least 1")

    @property
    def options(self) -> dict[str, int]:
        if self.number:
            return {"num_heads": self.number}
        return {"channels_per_head": self.channels}

    def of(self, width: int) -> int:
        heads = self.number or width // self.channels
        if not heads or width % heads or (not self.number and width % self.channels):
            raise UserError(
                f"{self.path}: {width} channels do not split into heads of {self.channels}"
                if not self.number
                else f"{self.path}: {width} channels do not split into {self.number} heads"
            )
        return heads


def _rows(value: Tensor, heads: int, new_order: bool) -> Tensor:
    """qkv's rows as EDM orders them, (head, d, 3)."""
    size = value.shape[0] // (3 * heads)
    parts = value.unflatten(0, (3, heads, size) if new_order else (heads, 3, size))
    parts = parts.permute(1, 2, 0, *range(3, parts.dim())) if new_order else parts.transpose(1, 2)
    return parts.flatten(0, 2).contiguous()


def _blocks(tensors: Mapping[str, Any], path: Any) -> dict[str, int]:
    """How many blocks each half has."""
    count = {"input_blocks": 0, "output_blocks": 0}
    for name in tensors:
        match = re.match(r"(input_blocks|output_blocks)\.(\d{1,3})\.", name)
        if match:
            count[match[1]] = max(count[match[1]], int(match[2]) + 1)
    if not count["output_blocks"] or sum(count.values()) > MAX_BLOCKS:
        raise UserError(f"{path}: its blocks are not those of a U-Net of ADM's")
    return count


def _doubles(tensors: Mapping[str, Any], index: int) -> bool:
    """Whether a block of the decoder ends with a doubling of the resolution, told from its weights
    (one without weights cannot be told)."""
    return any(
        f"output_blocks.{index}.{part}.{layer}.weight" in tensors
        for part in (1, 2)
        for layer in ("in_layers.0", "conv")
    )
