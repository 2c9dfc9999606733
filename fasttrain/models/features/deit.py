"""DeiT-B distilled, patches of 16 pixels (Touvron et al., arXiv 2012.12877): a feature network of
the projected discriminator.

A vision transformer of 12 blocks with two tokens, for the class and for distillation, before the
patches' tokens:

    x = x + proj(attention(qkv(norm1(x)))),     x = x + fc2(gelu(fc1(norm2(x))))

The tokens after blocks 3, 6, 9 and 12, without those two, are arranged as maps and resized to four
resolutions by untrained convolutions ("reassembly", Ranftl et al., "Vision Transformers for Dense
Prediction", arXiv 2103.13413): random and frozen, a function of their seed.

Parameters have timm's names, so its weights file loads. For other image sizes than 224 the position
embedding is resized bilinearly.

    network = DistilledDeiT(seed=0)
    network.load_state_dict(weights, strict=False)
    maps = network.stages(images)                # normalised images [N, 3, H, W]
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from fasttrain.models.features.backbone import Backbone
from fasttrain.models.features.weights import Published
from fasttrain.models.networks.frozen_conv import frozen_conv2d, frozen_conv_transpose2d
from fasttrain_kernels import IMAGENET

__all__ = ["BACKBONE", "Attention", "DistilledDeiT", "Mlp", "PatchEmbed"]

WIDTH = 768
HEADS = 12
BLOCKS = 12
PATCH = 16
GRID = 14
"""Patches along each side of the 224 px images of its training."""
TOKENS = 2
"""Tokens before those of the patches: for the class and for distillation."""
NORM_EPS = 1e-6


class _Attention(torch.autograd.Function):
    """torch's scaled_dot_product_attention, differentiable twice: its fast backends are not. Under
    create_graph (exactly then grad mode is on inside backward) the plain formula is used.

    Only q, k and v are kept; the forward pass runs again for the gradient, at a twentieth of a
    block's operations.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(q, k, v)
        return F.scaled_dot_product_attention(q, k, v)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled():
            q, k, v = (t.view_as(t) for t in ctx.saved_tensors)
            weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
            return torch.autograd.grad(weights @ v, (q, k, v), grads[0], create_graph=True)
        inputs = [t.detach().requires_grad_() for t in ctx.saved_tensors]
        with torch.enable_grad():
            output = F.scaled_dot_product_attention(*inputs)
        return torch.autograd.grad(output, inputs, grads[0])


class Attention(nn.Module):
    def __init__(self, width: int = WIDTH, heads: int = HEADS) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = _Attention.apply(*qkv.unbind(0))
        return cast(Tensor, self.proj(y.transpose(1, 2).flatten(2)))


class Mlp(nn.Module):
    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc2(F.gelu(self.fc1(x))))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, eps=NORM_EPS)
        self.attn = Attention()
        self.norm2 = nn.LayerNorm(WIDTH, eps=NORM_EPS)
        self.mlp = Mlp()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return cast(Tensor, x + self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    def __init__(self, width: int = WIDTH, patch: int = PATCH) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, patches, width]. One matrix product: patches do not overlap."""
        side = self.patch
        patches = rearrange(x, "n c (h p) (w q) -> n (h w) (c p q)", p=side, q=side)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class Reassemble(nn.Module):
    """Four maps of 768 channels to 96 at four times their size, 192 at twice, 384, and 768 at half.

    Weights and biases are drawn on the CPU from `seed` alone, uniform within 1 / sqrt(fan in).
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator("cpu").manual_seed(seed)
        self.widths = DistilledDeiT.stage_channels
        for k, width in enumerate(self.widths):
            self._draw(f"mix{k}", (width, WIDTH, 1, 1), WIDTH, width, generator)
        for k, factor in ((0, 4), (1, 2)):  # [in, out, factor, factor], each output of one input
            width = self.widths[k]
            fan = width * factor**2  # as torch counts it for a transposed convolution
            self._draw(f"grow{k}", (width, width, factor, factor), fan, width, generator)
        self._draw("shrink3", (WIDTH, WIDTH, 3, 3), 9 * WIDTH, WIDTH, generator)

    def _draw(
        self, name: str, shape: tuple[int, ...], fan: int, out: int, generator: torch.Generator
    ) -> None:
        device = torch.get_default_device()
        for kind, size in (("weight", shape), ("bias", (out,))):
            values = torch.rand(size, generator=generator, device="cpu") * 2 - 1
            self.register_buffer(f"{name}_{kind}", (values / math.sqrt(fan)).to(device))

    def _of(self, name: str) -> tuple[Tensor, Tensor]:
        return self.get_buffer(f"{name}_weight"), self.get_buffer(f"{name}_bias")

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        mixed = [frozen_conv2d(x, *self._of(f"mix{k}")) for k, x in enumerate(maps)]
        for k, factor in ((0, 4), (1, 2)):
            mixed[k] = frozen_conv_transpose2d(
                mixed[k], *self._of(f"grow{k}"), stride=(factor, factor), padding=(0, 0)
            )
        mixed[3] = frozen_conv2d(mixed[3], *self._of("shrink3"), stride=(2, 2), padding=(1, 1))
        return mixed


class DistilledDeiT(nn.Module):
    """The transformer up to its last block, and the reassembly, without its two classifiers.

    Args:
        seed: of the reassembly.
    Attributes:
        stage_channels: channels of the four maps of `stages`.
    """

    stage_channels = (96, 192, 384, 768)

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.randn(1, TOKENS + GRID**2, WIDTH) * 0.02)
        self.patch_embed = PatchEmbed()
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.reassemble = Reassemble(seed)

    def stages(self, x: Tensor) -> list[Tensor]:
        """Maps at 1/4, 1/8, 1/16 and 1/32 of the image, whose sides divide by 32. Differentiable
        twice in the images."""
        height, width = x.shape[2] // PATCH, x.shape[3] // PATCH
        maps = [
            tokens[:, TOKENS:].transpose(1, 2).unflatten(2, (height, width))
            for tokens in self._tokens(x, height, width)
        ]
        return self.reassemble([m.contiguous(memory_format=torch.channels_last) for m in maps])

    def _tokens(self, x: Tensor, height: int, width: int) -> Iterator[Tensor]:
        """The tokens after every third block."""
        samples = len(x)
        extra = (token.expand(samples, -1, -1) for token in (self.cls_token, self.dist_token))
        tokens = torch.cat([*extra, self.patch_embed(x)], dim=1) + self._positions(height, width)
        for place, block in enumerate(self.blocks, start=1):
            tokens = block(tokens)
            if place % (BLOCKS // 4) == 0:
                yield tokens

    def _positions(self, height: int, width: int) -> Tensor:
        """The position embedding for a grid of patches, resized (bilinear) to it."""
        if (height, width) == (GRID, GRID):
            return self.pos_embed
        grid = self.pos_embed[:, TOKENS:].unflatten(1, (GRID, GRID)).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=(height, width), mode="bilinear", align_corners=False)
        return torch.cat([self.pos_embed[:, :TOKENS], grid.flatten(2).transpose(1, 2)], dim=1)


BACKBONE = Backbone(
    make=DistilledDeiT,
    factors=(4, 8, 16, 32),
    norm=IMAGENET,
    published=Published(
        "deit_base_distilled",
        "deit_base_distilled_patch16_224-df68dfff.pth",
        "df68dfff",
        "DeiT's releases (dl.fbaipublicfiles.com/deit)",
    ),
    own="reassemble.",
)
