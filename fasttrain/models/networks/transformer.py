"""DiT, the diffusion transformer (Peebles and Xie, "Scalable Diffusion Models with Transformers",
arXiv 2212.09748), and with the same weights SiT (Ma et al., arXiv 2401.08740), under their
published names.

An image of latents becomes a token for each patch, with fixed sines of its place added. The noise
level and the class make one vector c, and each block takes six vectors of it (adaLN-zero):

    shift, scale, gate, shift', scale', gate' = linear(silu(c))
    x = x + gate  attention(norm(x) (1 + scale) + shift)
    x = x + gate' mlp(norm(x) (1 + scale') + shift')

The gates, and the last layer, start at zero. Norms have no weights.

Use:

    net = DiT(img_resolution=32, in_channels=4, out_channels=8, label_dim=1000, hidden_size=1152)
    out = net(x, noise_labels, class_labels)        # x [N, 4, 32, 32], noise_labels [N]
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fasttrain.models.networks.layers import PositionalEmbedding
from fasttrain.models.networks.network import ClassRows, Network
from fasttrain.models.networks.song_unet import drop_labels
from fasttrain_kernels import attention

__all__ = ["DiT", "DiTBlock", "place_embedding"]

_EPS = 1e-6


class Linear(nn.Linear):
    """torch's, in the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class PatchConv(nn.Conv2d):
    """torch's, in the dtype of its input."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.conv2d(x, self.weight.to(x.dtype), bias, self.stride)


class ClassTable(nn.Embedding):
    """Rows of the table weighted by labels [N, rows]: of one-hot labels, one row."""

    def forward(self, labels: Tensor) -> Tensor:
        return labels.float() @ self.weight.float()


class PatchEmbedding(nn.Module):
    """[N, C, R, R] -> [N, tokens, hidden]: a product a patch, rows first."""

    def __init__(self, patch_size: int, in_channels: int, hidden_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = PatchConv(in_channels, hidden_size, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class TimeEmbedding(nn.Module):
    """Noise labels [N] -> [N, hidden] float32."""

    def __init__(self, hidden_size: int, frequencies: int = 256) -> None:
        super().__init__()
        self.sines = PositionalEmbedding(frequencies)
        self.mlp = nn.Sequential(
            Linear(frequencies, hidden_size), nn.SiLU(), Linear(hidden_size, hidden_size)
        )

    def forward(self, noise_labels: Tensor) -> Tensor:
        return self.mlp(self.sines(noise_labels.float()))


class LabelEmbedding(nn.Module):
    """Class labels [N, label_dim] (a row of zeros: no class) -> [N, hidden] float32."""

    def __init__(self, label_dim: int, hidden_size: int, null_class: bool) -> None:
        super().__init__()
        self.label_dim = label_dim
        self.null_class = null_class
        self.embedding_table = ClassTable(label_dim + null_class, hidden_size)

    def forward(self, labels: Tensor) -> Tensor:
        if self.null_class:
            labels = torch.cat([labels, 1 - labels.sum(dim=1, keepdim=True)], dim=1)
        return self.embedding_table(labels)


class Attention(nn.Module):
    """Self-attention of tokens; the rows of `qkv` are (3, head, d)."""

    def __init__(self, hidden_size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(hidden_size, 3 * hidden_size)
        self.proj = Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor, side: int) -> Tensor:
        """x [N, side * side, hidden]: tokens lie as the pixels of a channels_last image do."""
        qkv = self.qkv(x).unflatten(1, (side, side)).permute(0, 3, 1, 2)
        y = attention(qkv, heads=self.heads)
        return self.proj(y.permute(0, 2, 3, 1).flatten(1, 2))


class MLP(nn.Module):
    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.fc1 = Linear(hidden_size, width)
        self.fc2 = Linear(width, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`norm(x) (1 + scale) + shift` of tokens [N, T, D] by vectors [N, D]."""
    x = F.layer_norm(x, x.shape[-1:], eps=_EPS)
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class DiTBlock(nn.Module):
    """The block of the module docstring."""

    def __init__(self, hidden_size: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.attn = Attention(hidden_size, heads)
        self.mlp = MLP(hidden_size, mlp_width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(hidden_size, 6 * hidden_size))

    def forward(self, x: Tensor, c: Tensor, side: int) -> Tensor:
        """x [N, T, D] and c [N, D] float32 -> [N, T, D] in the dtype of x."""
        parts = self.adaLN_modulation(c).to(x.dtype).chunk(6, dim=1)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = parts
        x = x + gate.unsqueeze(1) * self.attn(modulate(x, shift, scale), side)
        return x + gate_mlp.unsqueeze(1) * self.mlp(modulate(x, shift_mlp, scale_mlp))


class FinalLayer(nn.Module):
    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.linear = Linear(hidden_size, width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(hidden_size, 2 * hidden_size))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).to(x.dtype).chunk(2, dim=1)
        return self.linear(modulate(x, shift, scale))


def place_embedding(width: int, side: int) -> Tensor:
    """Sines and cosines of a token's place, [1, side * side, width] float32: the first half of the
    channels says its column, the second its row.

    Raises:
        ValueError: a width that is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"hidden_size {width} is not a multiple of 4")
    rates = 10000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angles = torch.outer(torch.arange(side, dtype=torch.float64), rates)
    line = torch.cat([angles.sin(), angles.cos()], dim=1).float()
    columns, rows = line.expand(side, -1, -1), line[:, None].expand(-1, side, -1)
    return torch.cat([columns, rows], dim=2).reshape(1, side * side, width)


class DiT(Network):
    """The transformer of DiT and SiT.

    Args:
        img_resolution, in_channels, out_channels: of the (square) images or latents.
        label_dim: number of classes, 0 for unconditional.
        label_dropout: of whole class labels, while training.
        patch_size, hidden_size, depth, num_heads, mlp_ratio: as published; DiT-XL/2 is the default.
        null_class: whether the table of classes has one more row, for no class.
    Raises:
        ValueError: sizes that do not divide each other.
    """

    pos_embed: Tensor

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        label_dropout: float = 0.0,
        patch_size: int = 2,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        null_class: bool = True,
    ) -> None:
        if img_resolution % patch_size:
            raise ValueError(f"patches of {patch_size} do not divide {img_resolution} pixels")
        if hidden_size % num_heads:
            raise ValueError(f"hidden_size {hidden_size} does not split into {num_heads} heads")
        super().__init__()
        self.patch_size = patch_size
        self.out_channels = out_channels
        self.side = img_resolution // patch_size
        self.label_dropout = label_dropout
        self.register_buffer("pos_embed", place_embedding(hidden_size, self.side))
        self.x_embedder = PatchEmbedding(patch_size, in_channels, hidden_size)
        self.t_embedder = TimeEmbedding(hidden_size)
        self.y_embedder = LabelEmbedding(label_dim, hidden_size, null_class) if label_dim else None
        width = int(hidden_size * mlp_ratio)
        layers = nn.ModuleList(DiTBlock(hidden_size, num_heads, width) for _ in range(depth))
        self._modules["blocks"] = layers  # the published name, which is a method's, too
        self.final_layer = FinalLayer(hidden_size, patch_size**2 * out_channels)
        self._draw()

    def blocks(self) -> list[nn.Module]:
        return list(self._layers())

    def freezing(self) -> dict[int, list[str]]:
        """What stands for a U-Net's convolutions, the MLPs, and attention's output; then queries,
        keys and values; then the patches' own layers. adaLN, embeddings and, until then, the last
        layer train."""
        kinds = {
            1: (".mlp.", ".attn.proj."),
            2: (".attn.qkv.",),
            3: ("x_embedder.", "final_layer.linear."),
        }
        groups: dict[int, list[str]] = {level: [] for level in kinds}
        for name, _ in self.named_parameters():
            for level, tokens in kinds.items():
                begins = tokens if level == 3 else "blocks."
                if name.startswith(begins) and any(token in name for token in tokens):
                    groups[level].append(name)
        return groups

    def kind_of(self, name: str) -> str:
        if name.startswith("blocks.") and "adaLN" not in name:
            return "attention" if ".attn." in name else "mlp"
        return "ends" if name.startswith(("x_embedder.", "final_layer.linear.")) else "embedding"

    def class_tables(self) -> list[ClassRows]:
        return [ClassRows("y_embedder.embedding_table.weight", dim=0)] if self.y_embedder else []

    def judged(self) -> list[tuple[str, int, int]]:
        places = sorted({max(0, len(self._layers()) * k // 4 - 1) for k in range(1, 5)})
        return [(f"blocks.{place}", self.pos_embed.shape[-1], self.side) for place in places]

    def noise_layer(self) -> str:
        return "t_embedder.mlp.2"

    def _layers(self) -> nn.ModuleList:
        layers = self._modules["blocks"]
        assert isinstance(layers, nn.ModuleList)
        return layers

    @torch.no_grad()
    def _draw(self) -> None:
        """The published initial distributions."""
        first, second, *_ = (m for m in self.t_embedder.mlp if isinstance(m, Linear))
        for name, parameter in self.named_parameters():
            if name.endswith("bias") or "adaLN" in name or name == "final_layer.linear.weight":
                nn.init.zeros_(parameter)
            elif parameter is first.weight or parameter is second.weight or "table" in name:
                nn.init.normal_(parameter, std=0.02)
            else:
                nn.init.xavier_uniform_(parameter.flatten(1))

    def forward(
        self,
        x: Tensor,
        noise_labels: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """x [N, in_channels, R, R] in the dtype to compute in, noise_labels [N] float32,
        class_labels [N, label_dim] float32 -> [N, out_channels, R, R]; there are no augmentation
        labels."""
        c = self.t_embedder(noise_labels)
        if self.y_embedder is not None:
            if class_labels is None:
                class_labels = c.new_zeros(len(x), self.y_embedder.label_dim)
            labels = drop_labels(class_labels, self.label_dropout, self.training)
            c = c + self.y_embedder(labels)
        tokens = self.x_embedder(x)
        tokens = tokens + self.pos_embed.to(tokens.dtype)
        for block in self._layers():
            tokens = block(tokens, c, self.side)
        patches = self.final_layer(tokens, c)
        side, size = self.side, self.patch_size
        patches = patches.unflatten(2, (size, size, self.out_channels))
        patches = patches.unflatten(1, (side, side))
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(len(x), -1, side * size, side * size)
