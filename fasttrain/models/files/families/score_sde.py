"""score_sde_pytorch's `ncsnpp`: NCSN++ and DDPM++ with continuous time, averaged weights. The
network is our SongUNet; its modules are counted instead of named, in the order in which they were
made:

    [frequencies] linear linear conv
    (block [attention]) x R, [half, [pyramid]]            of each level
    block attention block
    block x (R + 1), [attention], [double]                of each level, back
    norm conv
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fasttrain.models.files.families.foreign import Foreign
from fasttrain.models.files.families.latents import latents_of
from fasttrain.models.files.families.options import Options
from fasttrain.system.errors import UserError

__all__ = ["is_score_sde", "read_score_sde"]

BLOCK = {
    "GroupNorm_0": "norm0",
    "Conv_0": "conv0",
    "Dense_0": "affine",
    "GroupNorm_1": "norm1",
    "Conv_1": "conv1",
    "Conv_2": "skip",
}
MAX_MODULES = 1000
FILTER = (1, 3, 3, 1)


def is_score_sde(names: Mapping[str, Any]) -> bool:
    return any(name.startswith("all_modules.") for name in names)


def read_score_sde(tensors: Mapping[str, Tensor], options: Options) -> Foreign:
    for section in ("data", "model", "training"):
        options.section(section)
    _check(options)
    fourier = "all_modules.0.W" in tensors
    sde = options.choice("sde", ("vpsde", "vesde"), why="whether it is a VP or a VE model (sde)")
    if fourier != (sde == "vesde"):
        is_of = "fourier, of sde=vesde" if fourier else "positional, of sde=vpsde"
        other = "" if fourier else " (or of a VE model of discrete levels, which is not known here)"
        raise UserError(
            f"{options.path}: sde={sde} is not of this network, whose embedding of the noise level "
            f"is {is_of}{other}"
        )
    fir = options.truth("fir", why="whether its resampling is filtered (fir)")
    size = options.integer("image_size", why="the size of its images")
    walk = _Walk(tensors, options.path, size)
    network = walk.network(fourier)
    network["resample_filter"] = FILTER if fir else (1, 1)
    network["prediction"] = _vp(options) if sde == "vpsde" else _ve(options)
    latents = latents_of(options, network["img_channels"])
    options.check_used("a model of score_sde's")
    about = f"a {'NCSN++' if fourier else 'DDPM++'} of score_sde's ({sde}), its average"
    return Foreign(about, network, walk.weights, latents=latents)


def _check(options: Options) -> None:
    """Raises UserError for what is not the published NCSN++ and DDPM++."""
    options.refuse("name", "ncsnpp", why="only its ncsnpp network is")
    options.refuse("resblock_type", "biggan", why="only blocks of the kind biggan are")
    options.refuse("progressive", "none", why="its decoder is another")
    options.refuse("progressive_input", "none", "residual", why="its encoder is another")
    options.refuse("progressive_combine", "sum", why="its encoder is another")
    options.refuse("nonlinearity", "swish", why="only SiLU is")
    options.refuse("attention_type", "ddpm", why="its attention is another")
    options.refuse("skip_rescale", True, why="its residual sums are others")
    options.refuse("conditional", True, why="it does not see the noise level")
    options.refuse("continuous", True, why="only models of continuous time are")
    taps = options.get("fir_kernel", list(FILTER))
    if list(taps) != list(FILTER):
        raise UserError(f"{options.path}: fir_kernel is not {list(FILTER)}")


def _vp(options: Options) -> dict[str, Any]:
    options.refuse("centered", True, why="a VP model works on [-1, 1]")
    options.refuse("scale_by_sigma", False, why="a VP model does not divide by the noise level")
    low, high = options.number("beta_min", 0.1), options.number("beta_max", 20.0)
    return {"kind": "epsilon", "time": "vp", "vp_beta_min": low, "vp_beta_d": high - low}


def _ve(options: Options) -> dict[str, Any]:
    """On images in [0, 1], where noise is half of what it is on [-1, 1]."""
    options.refuse("scale_by_sigma", True, why="a VE model divides by the noise level")
    low, high = options.number("sigma_min", 0.01), options.number("sigma_max", 50.0)
    if options.truth("centered", False):
        time = {"time": "log", "scale": 1.0}
    else:
        time, low, high = {"time": "half_log"}, 2 * low, 2 * high
    return {"kind": "score", "sigma_min": low, "sigma_max": high, **time}


@dataclass
class _Walk:
    """The modules, one after another, taken for parts of a SongUNet."""

    tensors: Mapping[str, Tensor]
    path: Any
    size: int
    weights: dict[str, Tensor] = field(default_factory=dict)
    at: int = 0
    last: int = 0
    """Width of the last block."""

    def network(self, fourier: bool) -> dict[str, Any]:
        """The settings; `weights` are complete after it."""
        if fourier:
            self.weights["model.map_noise.freqs"] = self._take("W")
        embedding = self._layer("map_layer0")
        self._layer("map_layer1")
        conv = self._layer(f"enc.{self.size}x{self.size}_conv")
        width = conv.shape[0]
        res, each = self.size, 0
        widths: list[int] = []
        attended: list[int] = []
        residual = False
        while True:
            for number in range(each or MAX_MODULES):
                if not each and self._halves():
                    break
                if self._block(f"enc.{res}x{res}_block{number}"):
                    attended.append(res)
            each = each or number
            widths.append(self.last)
            if not self._halves():
                break
            if res % 2 or not each:
                raise self._unknown()
            res //= 2
            self._block(f"enc.{res}x{res}_down")
            if self._has("Conv2d_0.weight"):
                residual = True
                self._copy(f"enc.{res}x{res}_aux_residual", {"Conv2d_0": ""})
                self.at += 1
        self._block(f"dec.{res}x{res}_in0")
        self._block(f"dec.{res}x{res}_in1")
        for level in reversed(range(len(widths))):
            here = self.size >> level
            for number in range(each + 1):
                self._block(f"dec.{here}x{here}_block{number}")
            if level:
                self._block(f"dec.{2 * here}x{2 * here}_up")
        self._layer(f"dec.{self.size}x{self.size}_aux_norm")
        self._layer(f"dec.{self.size}x{self.size}_aux_conv")
        if self._has(""):
            raise self._unknown()
        noise = embedding.shape[1]
        if any(other % width for other in (*widths, noise, embedding.shape[0])):
            raise self._unknown()
        return {
            "model_type": "SongUNet",
            "img_resolution": self.size,
            "img_channels": conv.shape[1],
            "model_channels": width,
            "channel_mult": tuple(other // width for other in widths),
            "channel_mult_emb": embedding.shape[0] // width,
            "channel_mult_noise": noise // width,
            "num_blocks": each,
            "attn_resolutions": tuple(dict.fromkeys(attended)),
            "embedding_type": "fourier" if fourier else "positional",
            "encoder_type": "residual" if residual else "standard",
        }

    def _has(self, name: str) -> bool:
        prefix = f"all_modules.{self.at}.{name}"
        return any(key.startswith(prefix) for key in self.tensors)

    def _halves(self) -> bool:
        """Whether the next module is a block that resamples: only those have a skip convolution
        although the width stays."""
        skip = self.tensors.get(f"all_modules.{self.at}.Conv_2.weight")
        return skip is not None and skip.shape[0] == skip.shape[1]

    def _unknown(self) -> UserError:
        return UserError(f"{self.path}: its module {self.at} is not where NCSN++ has one")

    def _take(self, name: str) -> Tensor:
        value = self.tensors.get(f"all_modules.{self.at}.{name}")
        if value is None:
            raise self._unknown()
        self.at += 1
        return value

    def _layer(self, target: str) -> Tensor:
        bias = self.tensors.get(f"all_modules.{self.at}.bias")
        weight = self._take("weight")
        self.weights[f"model.{target}.weight"] = weight
        if bias is not None:
            self.weights[f"model.{target}.bias"] = bias
        return weight

    def _copy(self, target: str, names: Mapping[str, str]) -> None:
        for theirs, ours in names.items():
            for kind in ("weight", "bias"):
                value = self.tensors.get(f"all_modules.{self.at}.{theirs}.{kind}")
                if value is not None:
                    name = ".".join(part for part in ("model", target, ours, kind) if part)
                    self.weights[name] = value

    def _block(self, target: str) -> bool:
        """A residual block, and the attention that follows it; whether one does."""
        conv = self.tensors.get(f"all_modules.{self.at}.Conv_1.weight")
        if conv is None:
            raise self._unknown()
        self.last = conv.shape[0]
        self._copy(target, BLOCK)
        self.at += 1
        if not self._has("NIN_0.W"):
            return False
        self._copy(target, {"GroupNorm_0": "norm2"})
        parts = [self.tensors[f"all_modules.{self.at}.NIN_{i}.W"].T for i in range(4)]
        biases = [self.tensors[f"all_modules.{self.at}.NIN_{i}.b"] for i in range(4)]
        qkv = torch.stack(parts[:3], dim=1).flatten(0, 1)  # rows (d, 3) of the one head
        self.weights[f"model.{target}.qkv.weight"] = qkv[:, :, None, None].contiguous()
        self.weights[f"model.{target}.qkv.bias"] = torch.stack(biases[:3], dim=1).flatten()
        self.weights[f"model.{target}.proj.weight"] = parts[3][:, :, None, None].contiguous()
        self.weights[f"model.{target}.proj.bias"] = biases[3]
        self.at += 1
        return True
