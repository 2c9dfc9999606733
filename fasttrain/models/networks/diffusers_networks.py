"""Networks of diffusers as diffusers ships them (the extra `diffusers`), called as ours are:
`UNet2DModel` and `DiTTransformer2DModel`, under diffusers' names below `net.`.

    net = DiffusersUNet(img_resolution=32, in_channels=3, out_channels=3, config=json_text)
    out = net(x, noise_labels, class_labels)

`config` is the text of the folder's `config.json`. Their layers do not cast their weights to the
activations' type, so that bfloat16 runs under autocast.
"""

from __future__ import annotations

import importlib
import json
import re
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fasttrain.models.networks.network import ClassRows, Network
from fasttrain.models.networks.song_unet import drop_labels
from fasttrain.settings.base import MAX_BLOCKS
from fasttrain.system.errors import is_machine_fault

__all__ = ["DiffusersTransformer", "DiffusersUNet"]


BLOCKS = ("ResnetBlock2D", "Attention", "BasicTransformerBlock")
KINDS = {
    3: (".conv_shortcut.", ".skip_conv.", "pos_embed.proj."),
    2: (".to_q.", ".to_k.", ".to_v."),
    1: (".conv1.", ".conv2.", ".conv.", ".to_out.", ".ff."),
}
"""Level of freezing -> parts of names of what it freezes; the first that fits counts."""


DEEP = (
    "layers_per_block",
    "num_layers",
    "block_out_channels",
    "down_block_types",
    "up_block_types",
)
"""Settings whose size is a number of modules."""
INSIDE = re.compile(r"(^|\.)(down_blocks|mid_block|up_blocks|transformer_blocks)\.")


class SoftEmbedding(nn.Embedding):
    """An embedding of class labels [N, classes]: a row of zeros is no class."""

    def forward(self, labels: Tensor) -> Tensor:
        return labels.to(self.weight.dtype) @ self.weight


class _Shipped(Network):
    """What both have in common.

    Args:
        img_resolution, in_channels, out_channels: must be those of `config`, which says the rest.
        label_dim: number of classes, whatever `config` says of them.
        label_dropout: of whole class labels, while training.
    Raises:
        ValueError: no diffusers; a config that is not of such a network, or of another one than
            the other arguments say.
    """

    kind: str
    classes: str
    """Name of the number of classes in the config, which `label_dim` says instead."""

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        label_dropout: float = 0.0,
        config: str = "{}",
    ) -> None:
        super().__init__()
        self.label_dim = label_dim
        self.label_dropout = label_dropout
        try:
            values = json.loads(config)
            network = getattr(importlib.import_module("diffusers"), self.kind)
        except ImportError:
            raise ValueError(
                f"{self.kind} is diffusers' own network: pip install 'fasttrain[diffusers]'"
            ) from None
        except ValueError:
            raise ValueError("config is not the text of a config.json") from None
        if not isinstance(values, dict):
            raise ValueError("config is not the text of a config.json")
        values = {name: value for name, value in values.items() if not name.startswith("_")}
        values[self.classes] = label_dim or None
        for name in DEEP:
            value = values.get(name)
            if (isinstance(value, int) and value > MAX_BLOCKS) or (
                isinstance(value, list) and len(value) > MAX_BLOCKS
            ):
                raise ValueError(f"config: {name} is above {MAX_BLOCKS}")
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
            if values.get(name) not in (value, None):
                raise ValueError(f"{name} is {value}, and {values[name]} in config")
            values[name] = value
        try:
            self.net = network(**values)
        except Exception as error:  # a config can be anything
            if is_machine_fault(error):
                raise
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"config: {why}") from None
        self._adapt()

    def _adapt(self) -> None:
        """Check what the network is, and make it take our labels."""
        raise NotImplementedError

    def blocks(self) -> list[nn.Module]:
        return [module for module in self.net.modules() if type(module).__name__ in BLOCKS]

    def freezing(self) -> dict[int, list[str]]:
        """By the kind of layer, as of our own networks: convolutions and MLPs in blocks, and
        attention's output; then queries, keys and values; then the skip paths and patches."""
        groups: dict[int, list[str]] = {level: [] for level in KINDS}
        for name, _ in self.named_parameters():
            inside = INSIDE.search(name)
            for level, tokens in KINDS.items():
                if any(token in name for token in tokens) and (inside or level == 3):
                    groups[level].append(name)
                    break
        return groups

    def kind_of(self, name: str) -> str:
        kinds = {
            "embedding": ("emb", "norm1.linear."),
            "norm": ("norm",),
            "skip": KINDS[3][:2],
            "attention": (*KINDS[2], ".to_out."),
            "mlp": (".ff.",),
            "conv": (".conv1.", ".conv2.", ".conv."),
        }
        if "pos_embed" in name or not (INSIDE.search(name) or "emb" in name):
            return "norm" if "norm" in name else "ends"
        return next(k for k, parts in kinds.items() if any(part in name for part in parts))

    def class_tables(self) -> list[ClassRows]:
        ends = ("class_embedding.weight", "class_embedder.embedding_table.weight")
        names = [name for name, _ in self.named_parameters() if name.endswith(ends)]
        return [ClassRows(name, dim=0) for name in names]

    def _autocast(self, x: Tensor) -> Any:
        if x.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(x.device.type, x.dtype)


class DiffusersUNet(_Shipped):
    """`UNet2DModel`. One with a `fourier` embedding is score_sde's NCSN++, which takes images in
    [0, 1] and divides its output by the noise level: both are undone here."""

    kind = "UNet2DModel"
    classes = "num_class_embeds"

    def _adapt(self) -> None:
        config = self.net.config
        self.fourier = config.time_embedding_type == "fourier"
        self.centres = bool(config.center_input_sample)
        if config.time_embedding_type not in ("fourier", "positional") or config.class_embed_type:
            raise ValueError("config: its embedding of the noise level or of classes is unknown")
        if self.label_dim:
            width = self.net.class_embedding.weight.shape[1]
            self.net.class_embedding = SoftEmbedding(self.label_dim, width)

    def forward(
        self,
        x: Tensor,
        noise_labels: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """x [N, in_channels, R, R], noise_labels [N]: the time, or with a `fourier` embedding
        sigma / 2; class_labels [N, label_dim] -> [N, out_channels, R, R]."""
        labels = None
        if self.label_dim:
            labels = x.new_zeros(len(x), self.label_dim) if class_labels is None else class_labels
            labels = drop_labels(labels, self.label_dropout, self.training)
        if self.centres:
            x = (x + 1) / 2
        with self._autocast(x):
            out = self.net(x, noise_labels, class_labels=labels).sample
        return out * noise_labels[:, None, None, None].to(out.dtype) if self.fourier else out


class DiffusersTransformer(_Shipped):
    """`DiTTransformer2DModel`: no class is its table's last row."""

    kind = "DiTTransformer2DModel"
    classes = "num_embeds_ada_norm"

    def _adapt(self) -> None:
        if not self.label_dim:
            raise ValueError("a DiffusersTransformer has classes: label_dim is 0")
        for module in self.net.modules():
            if type(module).__name__ == "LabelEmbedding":
                module.dropout_prob = 0.0  # its own draws; `label_dropout` is ours
        # A buffer that no file holds: real where the network is only described.
        places = self.net.pos_embed
        config = self.net.config
        with torch.device("cpu"):
            width = config.num_attention_heads * config.attention_head_dim
            sizes = (config.sample_size, config.sample_size, config.patch_size)
            real = type(places)(*sizes, config.in_channels, width)
        places.pos_embed = real.pos_embed

    def forward(
        self,
        x: Tensor,
        noise_labels: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """x [N, in_channels, R, R], noise_labels [N]: the time; class_labels [N, label_dim]
        one-hot -> [N, out_channels, R, R]."""
        if class_labels is None:
            class_labels = x.new_zeros(len(x), self.label_dim)
        labels = drop_labels(class_labels, self.label_dropout, self.training)
        null = 1 - labels.sum(dim=1, keepdim=True)
        places = self.net.pos_embed
        if places.pos_embed.device != x.device:
            places.pos_embed = places.pos_embed.to(x.device)
        indices = torch.cat([labels, null], dim=1).argmax(dim=1)
        with self._autocast(x):
            return self.net(x, noise_labels, class_labels=indices).sample
