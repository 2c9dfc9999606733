"""The U-Net blocks on the Triton kernels: the same function as in plain PyTorch, what they keep for
the backward pass, and whole networks under torch.compile."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fasttrain.models.freezing import apply_freezing
from fasttrain.models.networks import build_network
from fasttrain.models.networks.layers import Init
from fasttrain.models.networks.unet_block import UNetBlock
from fasttrain_kernels import using
from fasttrain_kernels.statistics import partial_statistics

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def randomise(module: nn.Module, seed: int = 0) -> None:
    """No weight at its initial zero, so that every path counts."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            fan = max(parameter.numel() // len(parameter), 1)
            parameter.normal_().mul_(fan**-0.5)


def blocks() -> Iterator[Any]:
    """Plain, with attention and other widths, up and down with both filters, both modulations."""
    for adaptive in (True, False):
        yield pytest.param({"adaptive_scale": adaptive}, id=f"plain-{adaptive}")
        wide = {"out": 16, "heads": 1, "skip_scale": 0.5, "adaptive_scale": adaptive}
        yield pytest.param(wide, id=f"attention-{adaptive}")
    for way, taps in itertools.product(("up", "down"), ((1, 1), (1, 3, 3, 1))):
        proj = taps != (1, 1)
        options = {way: True, "resample_filter": taps, "resample_proj": proj, "skip_scale": 0.7}
        yield pytest.param({**options, "adaptive_scale": not proj}, id=f"{way}-{len(taps)}")


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", list(blocks()))
def test_a_block_on_the_kernels_is_the_same_function(
    options: dict[str, Any], layout: str, frozen: bool
) -> None:
    options = dict(options)
    out = options.pop("out", 8)
    block = UNetBlock(8, out, emb_channels=6, init=Init(bias=1.0), **options).eval()
    randomise(block)
    for name, parameter in block.named_parameters():
        parameter.requires_grad_(not (frozen and "conv" in name))
    exact = copy.deepcopy(block).double()
    torch.manual_seed(1)
    x = torch.randn(2, 8, 4, 6).contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    emb = torch.randn(2, 6, requires_grad=True)
    x64, emb64 = (t.detach().double().requires_grad_() for t in (x, emb))

    with using("triton"):
        y, statistics = block(x, emb, partial_statistics(x))
    with using("reference"):
        expected, none = exact(x64, emb64)
    assert none is None
    torch.testing.assert_close(y.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(statistics, partial_statistics(y), atol=1e-5, rtol=1e-5)
    assert y.is_contiguous(memory_format=LAYOUTS[layout])

    dy = torch.randn_like(y)
    leaves = [x, emb, *(p for p in block.parameters() if p.requires_grad)]
    leaves64 = [x64, emb64, *(p for p in exact.parameters() if p.requires_grad)]
    with using("triton"):
        grads = torch.autograd.grad(y, leaves, dy)
    for grad, e in zip(grads, torch.autograd.grad(expected, leaves64, dy.double()), strict=True):
        atol = 1e-5 * max(1.0, float(e.abs().max()))
        torch.testing.assert_close(grad.double(), e, atol=atol, rtol=1e-4)


def kept_for_backward(block: UNetBlock, x: Tensor, emb: Tensor) -> list[tuple[int, ...]]:
    """Shapes of the activations that a forward pass keeps, but for its input."""
    kept: dict[int, tuple[int, ...]] = {}

    def pack(t: Tensor) -> Tensor:
        if t.dim() == 4 and not isinstance(t, nn.Parameter):
            kept[t.untyped_storage().data_ptr()] = tuple(t.shape)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y, _ = block(x, emb)
    pointers = {t.untyped_storage().data_ptr() for t in (x, y)}
    return [shape for pointer, shape in kept.items() if pointer not in pointers]


def test_frozen_convolutions_keep_no_input() -> None:
    """Of a block's chain only the input of each norm is kept: x itself and conv0's output. With
    convolutions that train, the norms' outputs are besides, unless they are recomputed."""
    block = UNetBlock(8, 8, emb_channels=6).eval()
    x, emb = torch.randn(2, 8, 4, 4, requires_grad=True), torch.randn(2, 6)
    names = ("norm0", "conv0", "norm1", "conv1")

    def kept(**requires_grad: bool) -> int:
        for name in names:
            getattr(block, name).requires_grad_(requires_grad.get(name, True))
        return len(kept_for_backward(block, x, emb))

    with using("reference"):
        everything = kept()
        frozen = kept(conv0=False, conv1=False)
    assert frozen < everything
    with using("triton"):
        assert kept(conv0=False, conv1=False) == 1
        assert kept() == 3
        block.recompute = True
        assert kept() == 1


def test_heads_too_large_for_the_kernels_take_the_librarys_attention() -> None:
    """NCSN++ has one head of 256 channels."""
    block = UNetBlock(256, 256, emb_channels=6, heads=1).eval()
    randomise(block)
    x, emb = torch.randn(1, 256, 2, 1), torch.randn(1, 6)
    with torch.no_grad():
        with using("triton"):
            y, _ = block(x, emb)
        with using("reference"):
            expected, _ = block(x, emb)
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_recomputation_changes_no_number(training: bool) -> None:
    block = UNetBlock(8, 8, emb_channels=6, heads=1, dropout=0.5).train(training)
    randomise(block)
    x, emb = torch.randn(2, 8, 4, 4, requires_grad=True), torch.randn(2, 6, requires_grad=True)
    leaves = [x, emb, *block.parameters()]
    results = []
    for recompute in (False, True):
        block.recompute = recompute
        torch.manual_seed(3)
        y, _ = block(x, emb)
        results.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("kernels", ["reference", "triton"])
@pytest.mark.parametrize("model_type", ["SongUNet", "DhariwalUNet"])
def test_compile_takes_the_whole_network(model_type: str, kernels: str) -> None:
    """One graph, without a break, and the same numbers; frozen weights and channels_last too."""
    song = {"embedding_type": "fourier", "encoder_type": "residual"}
    song |= {"resample_filter": (1, 3, 3, 1), "channel_mult_noise": 2}
    net = build_network(
        "one_step",
        model_type,
        img_resolution=8,
        img_channels=3,
        label_dim=2,
        model_channels=8,
        channel_mult=(1, 2),
        num_blocks=1,
        attn_resolutions=(4,),
        **(song if model_type == "SongUNet" else {}),
    ).eval()
    randomise(net)
    apply_freezing(net.model, 1)
    net.memory_format = torch.channels_last
    x, labels = 80 * torch.randn(2, 3, 8, 8), torch.eye(2)
    trained = [p for p in net.parameters() if p.requires_grad]

    def run() -> tuple[Tensor, ...]:
        y = net(x, 80.0, labels)
        return (y, *torch.autograd.grad(y.square().mean(), trained))

    with using(kernels):  # type: ignore[arg-type]
        expected = run()
        torch._dynamo.reset()
        net.model.compile(fullgraph=True, backend="aot_eager")
        compiled = run()
    for a, b in zip(compiled, expected, strict=True):
        torch.testing.assert_close(
            a, b, atol=1e-6 * max(1, float(b.detach().abs().max())), rtol=1e-5
        )
