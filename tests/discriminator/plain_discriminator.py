"""The projected discriminator composed of plain operators, as it was published: what ours is
measured and tested against.

    plain = PlainDiscriminator(ours)            # the same weights, shared with ours
    logits = plain(images, class_labels)        # the same numbers, up to rounding

Batch norms are not folded, every 1x1 convolution runs on the doubled map as the formula has it,
each group's batch norm is a call, each spectral norm its own matrix products. Only
EfficientNet-Lite0 and VGG16-BN have another form than ours; DeiT's is the same operators.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain.discriminator import ProjectedDiscriminator
from fasttrain.discriminator.heads import Head
from fasttrain.discriminator.norms import SpectralConv2d
from fasttrain.models.features.backbone import backbone
from fasttrain.models.features.efficientnet_lite import SameConv2d
from fasttrain.models.features.network import load_weights

__all__ = ["PlainDiscriminator"]


class PlainDiscriminator:
    """The published composition, called as ours is.

    Args:
        ours: whose projectors and heads are used, and whose feature networks are loaded again.
        weights: where each feature network's weights come from, by name; "random" as in ours.
        seed: of random weights.
        dtype: of activations and feature networks; that of ours by default.
        compiled: whether torch.compile takes it.
    """

    def __init__(
        self,
        ours: ProjectedDiscriminator,
        weights: dict[str, Any] | None = None,
        seed: int = 0,
        dtype: torch.dtype | None = None,
        *,
        compiled: bool = False,
    ) -> None:
        self.ours = ours
        self._judge: Any = torch.compile(self._logits) if compiled else self._logits
        self.dtype = dtype or ours.features[0].dtype
        self.networks: dict[str, Any] = {}
        device = next(ours.heads.parameters()).device
        for features in ours.features:
            network = backbone(features.name).new(seed).eval().requires_grad_(False)
            given = (weights or {}).get(features.name)
            if given != "random":
                kind = backbone(features.name)
                load_weights(network, kind.published, given, own=kind.own)
            self.networks[features.name] = network.to(device, self.dtype)

    def __call__(self, images: Tensor, class_labels: Tensor | None) -> list[Tensor]:
        with plain_convolutions():  # outside of what is compiled, which could not look through it
            return cast(list[Tensor], self._judge(images, class_labels))

    def _logits(self, images: Tensor, class_labels: Tensor | None) -> list[Tensor]:
        logits = []
        for features in self.ours.features:
            unit = (images.expand(-1, 3, -1, -1) + 1) / 2
            mean, std = (images.new_tensor(v).view(3, 1, 1) for v in features.norm)
            x = (unit - mean) / std
            if features.size(images) != tuple(images.shape[-2:]):
                size = features.size(images)
                x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
            maps = self.networks[features.name].stages(x.to(self.dtype))
            projected = self.projected(features.name, maps)
            heads = zip(self.ours.heads[features.name].mini_discs, projected, strict=False)
            parts = [judged(head, feature_map, class_labels) for head, feature_map in heads]
            logits.append(torch.cat(parts, dim=1))
        return logits

    def projected(self, name: str, maps: list[Tensor]) -> list[Tensor]:
        weights = {k: v.to(self.dtype) for k, v in self.ours.projectors[name].state_dict().items()}
        outputs: list[Tensor] = []
        for i in reversed(range(len(maps))):
            ccm, csm = f"layer{i}_ccm", f"layer{i}_csm.out_conv"
            h = F.conv2d(maps[i], weights[f"{ccm}.weight"], weights[f"{ccm}.bias"])
            if outputs:
                h = h + outputs[-1]
            h = F.interpolate(h, scale_factor=2, mode="bilinear", align_corners=True)
            outputs.append(F.conv2d(h, weights[f"{csm}.weight"], weights[f"{csm}.bias"]))
        return outputs[::-1]

    def iterate_spectral_norm(self) -> None:
        for module in self.ours.heads.modules():
            if isinstance(module, SpectralConv2d):
                module.iterate()


@contextmanager
def plain_convolutions() -> Iterator[None]:
    """Inside, the frozen convolution is torch's, which keeps its input and differentiates twice by
    torch's own formula."""

    def conv2d(
        x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str = "none", **o: Any
    ) -> Tensor:
        y = F.conv2d(x, weight, bias, **o)
        return {"none": lambda t: t, "relu": F.relu, "relu6": F.relu6}[activation](y)

    def same_conv2d(self: SameConv2d, x: Tensor, relu6: bool = False) -> Tensor:
        stride, padding = 2 if self.strided else 1, self.reach
        before = [self.reach - (self.strided and size % 2 == 0) for size in x.shape[-2:]]
        if before != [self.reach, self.reach]:
            x, padding = F.pad(x, (before[1], self.reach, before[0], self.reach)), 0
        y = F.conv2d(x, self.weight, self.bias, stride, padding, groups=self.groups)
        return F.relu6(y) if relu6 else y

    with (
        mock.patch.object(SameConv2d, "forward", same_conv2d),
        mock.patch("fasttrain.models.features.deit.frozen_conv2d", conv2d),
        mock.patch("fasttrain.models.features.vgg.frozen_conv2d", conv2d),
    ):
        yield


def judged(head: Head, x: Tensor, class_labels: Tensor | None) -> Tensor:
    """A head's logits."""
    *blocks, last = head.main
    for block in blocks:
        conv, norm = block.main
        x = conv(x)
        parts = [
            F.batch_norm(
                part.to(torch.promote_types(part.dtype, torch.float32)),
                None, None, norm.weight, norm.bias, training=True, eps=1e-5,
            ).to(part.dtype)
            for part in x.split(norm.group)
        ]  # fmt: skip
        x = F.leaky_relu(torch.cat(parts) if len(parts) > 1 else parts[0], 0.2)
    features = last(x)
    if not head.label_dim:
        return features.flatten(1)
    assert class_labels is not None
    embedding = head.embed_proj(class_labels.to(head.embed.weight.dtype) @ head.embed.weight)
    embedding = embedding.to(features.dtype)[:, :, None, None]
    return (features * embedding).sum(1).flatten(1) / math.sqrt(features.shape[1])
