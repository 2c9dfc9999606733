"""Both U-Nets in every configuration: wiring, labels, dropout, dtypes, the meta device."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn

from fasttrain.models.networks import build_network
from fasttrain.models.networks.dhariwal_unet import DhariwalUNet
from fasttrain.models.networks.song_unet import SongUNet, drop_labels

SMALL: dict[str, Any] = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1}


def randomise(net: nn.Module) -> nn.Module:
    """No weight left at (or near) its initial zero, so that every path counts."""
    with torch.no_grad():
        for parameter in net.parameters():
            fan = max(parameter.numel() // len(parameter), 1)
            parameter.normal_().mul_(1 / math.sqrt(fan))
    return net


def song(**kwargs: Any) -> SongUNet:
    return SongUNet(8, 2, 2, **(SMALL | {"attn_resolutions": [4], "dropout": 0.0} | kwargs))


@pytest.mark.parametrize(
    ("encoder", "decoder", "embedding"),
    [
        *itertools.product(
            ["standard", "skip", "residual"],
            ["standard", "skip"],
            ["positional", "fourier", "zero"],
        )
    ],
)
def test_every_type_uses_every_parameter(encoder: Any, decoder: Any, embedding: Any) -> None:
    torch.manual_seed(0)
    net = song(
        encoder_type=encoder,
        decoder_type=decoder,
        embedding_type=embedding,
        resample_filter=[1, 3, 3, 1],
        label_dim=3,
        augment_dim=4,
        channel_mult=[1, 2, 2],
    )
    randomise(net)
    x = torch.randn(2, 2, 8, 8, requires_grad=True)
    noise_labels = torch.tensor([0.3, -0.8])
    out = net(x, noise_labels, torch.eye(3)[:2], torch.randn(2, 4))
    assert out.shape == x.shape
    out.square().mean().backward()
    unused = [
        name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().max() == 0
    ]
    # A shift before a norm with one channel a group would vanish; no group here is that small.
    # With "zero" the first mapping layer's input is the labels, still not zero.
    assert unused == []
    assert x.grad is not None
    assert float(x.grad.abs().min()) > 0
    other = net(x, noise_labels + 0.4, torch.eye(3)[:2])
    again = net(x, noise_labels, torch.eye(3)[:2])
    assert bool((other != again).any()) == (embedding != "zero")


@pytest.mark.parametrize("encoder", ["skip", "residual"])
def test_aux_encoder_names_and_skip_decoder_names(encoder: Any) -> None:
    net = song(encoder_type=encoder, decoder_type="skip")
    aux = [name for name in [*net.enc, *net.dec] if "aux" in name]
    at_encoder = ["4x4_aux_residual"] if encoder == "residual" else ["4x4_aux_down", "4x4_aux_skip"]
    decoder = ["4x4_aux_norm", "4x4_aux_conv", "8x8_aux_up", "8x8_aux_norm", "8x8_aux_conv"]
    assert aux == at_encoder + decoder


def test_skip_decoder_sums_the_levels_images() -> None:
    torch.manual_seed(1)
    net = randomise(song(decoder_type="skip"))
    x, noise_labels = torch.randn(2, 2, 8, 8), torch.zeros(2)
    whole = net(x, noise_labels)
    low: list[torch.Tensor] = []
    handle = net.dec["4x4_aux_conv"].register_forward_hook(lambda *args: low.append(args[2]))
    net(x, noise_labels)
    handle.remove()
    with torch.no_grad():
        net.dec["4x4_aux_conv"].weight.zero_()
        net.dec["4x4_aux_conv"].bias.zero_()
    rest = net(x, noise_labels)
    up = nn.functional.interpolate(low[0], scale_factor=2.0)
    torch.testing.assert_close(whole - rest, up, rtol=1e-4, atol=1e-5)


def test_unknown_types_and_odd_resolutions_are_refused() -> None:
    for unet in (SongUNet, DhariwalUNet):
        with pytest.raises(ValueError, match=r"28 cannot be halved 3 times: resize .* of 8 or"):
            unet(28, 1, 1, channel_mult=[1, 1, 1, 1])
    with pytest.raises(ValueError, match="encoder_type is 'residul': choose one of standard"):
        song(encoder_type="residul")
    with pytest.raises(ValueError, match="embedding_type"):
        song(embedding_type="none")
    with pytest.raises(ValueError, match="decoder_type"):
        song(decoder_type="residual")


@pytest.mark.parametrize("model_type", ["SongUNet", "DhariwalUNet"])
def test_bfloat16_activations_stay_near_float32(model_type: str) -> None:
    torch.manual_seed(2)
    net = build_network("one_step", model_type, 8, 3, 4, attn_resolutions=[4], **SMALL).eval()
    randomise(net)
    x, labels = 80 * torch.randn(4, 3, 8, 8), torch.eye(4)
    exact = net(x, 80.0, labels)
    net.activation_dtype = torch.bfloat16
    low = net(x, 80.0, labels)
    assert low.dtype == torch.float32
    error = float((low - exact).detach().norm() / exact.detach().norm())
    assert 1e-5 < error < 0.03
    low.square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in net.parameters())


@pytest.mark.parametrize("model_type", ["SongUNet", "DhariwalUNet"])
def test_meta_networks_have_the_real_shapes(model_type: str) -> None:
    kwargs: dict[str, Any] = {"label_dim": 3, "augment_dim": 2, **SMALL}
    if model_type == "SongUNet":
        kwargs["embedding_type"] = "fourier"
    with torch.device("meta"):
        meta = build_network("edm", model_type, 8, 1, **kwargs)
    real = build_network("edm", model_type, 8, 1, **kwargs)
    assert {p.device.type for p in [*meta.parameters(), *meta.buffers()]} == {"meta"}
    shapes = {name: value.shape for name, value in real.state_dict().items()}
    assert {name: value.shape for name, value in meta.state_dict().items()} == shapes


def test_fresh_networks_output_nearly_nothing() -> None:
    torch.manual_seed(3)
    x, noise_labels = torch.randn(2, 2, 8, 8), torch.zeros(2)
    assert not DhariwalUNet(8, 2, 2, **SMALL)(x, noise_labels).any()
    assert 0 < float(song()(x, noise_labels).detach().abs().max()) < 1e-3


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(4)
    net = randomise(song(dropout=0.5))
    x, noise_labels = torch.randn(2, 2, 8, 8), torch.zeros(2)
    assert not torch.equal(net(x, noise_labels), net(x, noise_labels))
    net.eval()
    assert torch.equal(net(x, noise_labels), net(x, noise_labels))


def test_label_dropout_zeroes_whole_rows() -> None:
    torch.manual_seed(5)
    labels = torch.eye(5).repeat(400, 1)
    dropped = drop_labels(labels, 0.25, training=True)
    kept = dropped.sum(1)
    assert set(kept.tolist()) == {0.0, 1.0}
    assert float(kept.mean()) == pytest.approx(0.75, abs=0.04)
    assert torch.equal(dropped[kept == 1], labels[kept == 1])
    assert drop_labels(labels, 0.25, training=False) is labels


def test_attention_where_asked() -> None:
    net = DhariwalUNet(
        16, 1, 1, model_channels=64, channel_mult=[1, 3], num_blocks=1, attn_resolutions=[8]
    )
    heads = {n: layer.heads for n, layer in [*net.enc.items(), *net.dec.items()] if "conv" not in n}
    assert {name for name, count in heads.items() if count} == {
        "8x8_block0",
        "8x8_in0",
        "8x8_block1",
    }
    assert net.enc["8x8_block0"].heads == net.dec["8x8_block1"].heads == 3
    # The lowest level's first block attends even where it is not asked to; only the last
    # decoder block of a level does in SongUNet.
    two = SongUNet(16, 1, 1, **(SMALL | {"num_blocks": 2}), attn_resolutions=[16])
    assert [n for n, layer in two.dec.items() if getattr(layer, "heads", 0)] == [
        "8x8_in0",
        "16x16_block2",
    ]
