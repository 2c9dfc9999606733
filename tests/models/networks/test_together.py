"""What is made for all blocks of a U-Net at once is what each block makes for itself."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fasttrain.models.adapters import adapt
from fasttrain.models.freezing import apply_freezing
from fasttrain.models.networks import build_network
from fasttrain.models.networks.coefficients import FAMILIES
from fasttrain.models.networks.layers import Init
from fasttrain.models.networks.together import Ready, cast_together, together
from fasttrain.models.networks.unet_block import UNetBlock
from fasttrain.settings.adapt import AdaptSettings
from fasttrain_kernels import blocked_rows, using
from tests.models.networks.test_fused import randomise

EMB = torch.randn(3, 8)


def network(model_type: str, freeze: Any = 1) -> Any:
    """With skip paths, some of them in blocks with attention; what is frozen is bfloat16."""
    net = build_network(
        "one_step", model_type, img_resolution=4, img_channels=3, label_dim=2, model_channels=8,
        channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,), channel_mult_emb=1,
        **({"num_heads": 2} if model_type == "DhariwalUNet" else {}),
    ).eval()  # fmt: skip
    randomise(net)
    apply_freezing(net.model, freeze)
    for parameter in net.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    return net


def made_by(net: Any, emb: Tensor = EMB) -> list[tuple[UNetBlock, Ready]]:
    x = torch.empty(len(emb), 8, 4, 4, dtype=torch.bfloat16)
    with using("triton"):
        made = net.model.ready(x, emb)
    blocks = [block for block in net.blocks() if isinstance(block, UNetBlock)]
    assert list(made) == blocks
    return list(made.items())


def by_itself(block: UNetBlock, emb: Tensor) -> list[Tensor]:
    """What a block makes of the same."""
    x = torch.empty(len(emb), 8, 4, 4, dtype=torch.bfloat16)
    own = block._ready(emb, x, True)
    found = [*own.affine, *([] if own.late is None else [own.late])]
    for name in ("skip", "qkv", "proj"):
        conv = getattr(block, name, None)
        if conv is None or conv.kernel != 1:
            continue
        heads = conv.blocks_of
        weight = conv.weight.flatten(1)
        if heads:
            found += [blocked_rows(t, heads, x.dtype) for t in (weight, conv.bias)]
        elif weight.dtype != x.dtype:
            found.append(weight.to(x.dtype))
    return found


def listed(ready: Ready) -> list[Tensor]:
    copies = [t for name in ("skip", "qkv", "proj") for t in ready.copies.get(name, ())]
    return [t for t in (*ready.affine, ready.late, *copies) if t is not None]


@pytest.mark.parametrize(
    ("model_type", "freeze"),
    [("DhariwalUNet", 1), ("DhariwalUNet", "none"), ("DhariwalUNet", 2), ("SongUNet", 3)],
)
def test_blocks_get_what_they_would_make(model_type: str, freeze: Any) -> None:
    """And every weight its gradient: copies and sums the same bits, products up to their order."""
    net = network(model_type, freeze)
    emb = EMB.clone().requires_grad_()
    sums: list[Tensor] = []
    for apart in (False, True):
        torch.manual_seed(1)
        total = torch.zeros(())
        for block, ready in made_by(net, emb):
            own, ours = by_itself(block, emb), listed(ready)
            for k, (t, e) in enumerate(zip(ours, own, strict=True)):
                assert (t.dtype, t.requires_grad) == (e.dtype, e.requires_grad)
                if k < len(ready.affine):
                    torch.testing.assert_close(t, e, rtol=1e-5, atol=1e-5)
                else:
                    assert torch.equal(t, e)
                total = total + ((e if apart else t).float() * torch.randn(t.shape)).sum()
        sums.append(total)
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    leaves = [emb, *trained.values()]
    ours, theirs = (torch.autograd.grad(s, leaves, allow_unused=True) for s in sums)
    for name, a, b in zip(("emb", *trained), ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is None or b is None:
            continue
        assert a.is_contiguous() or name == "emb"
        if "affine" in name or name == "emb":
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(a, b), name


def test_a_changed_weight_shows_in_the_next_pass() -> None:
    """By an optimizer, through `.data`, or in a copy of the network: nothing is kept."""
    net = network("DhariwalUNet")
    at = next(k for k, (block, _) in enumerate(made_by(net)) if block.heads and block.skip)
    twin, read = copy.deepcopy(net), copy.deepcopy(net)
    read.model = pickle.loads(pickle.dumps(net.model))
    with torch.no_grad():
        before = listed(made_by(net)[at][1])
        block = made_by(net)[at][0]
        assert block.skip is not None
        block.affine.weight.data.mul_(2)
        block.skip.bias.add_(1)
        block.skip.weight.data.mul_(2)
        block.qkv.weight.mul_(2)
        block.qkv.bias.data = 2 * block.qkv.bias
    after = listed(made_by(net)[at][1])
    own = by_itself(block, EMB)
    for k, (now, then, expected) in enumerate(zip(after, before, own, strict=True)):
        assert not torch.equal(now, then), k
        torch.testing.assert_close(now, expected, rtol=1e-5, atol=1e-5)
    for other in (twin, read):
        for now, then in zip(listed(made_by(other)[at][1]), before, strict=True):
            assert torch.equal(now, then)


def test_adapters_are_read() -> None:
    net = network("DhariwalUNet")
    adapt(net.model, AdaptSettings(kind="lora", rank=2), seed=0)
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    for block, ready in made_by(net):
        for t, e in zip(listed(ready), by_itself(block, EMB), strict=True):
            torch.testing.assert_close(t, e, rtol=1e-4, atol=1e-4)


def test_only_the_kernels_and_whole_weights_have_it() -> None:
    """Not plain operators; not ZeRO 3, where a block's weights are empty until it runs."""
    net, x = network("DhariwalUNet"), torch.empty(3, 8, 4, 4)
    with using("reference"):
        assert net.model.ready(x, EMB) == {}
    net.apply(lambda module: setattr(module, "apart", True))
    with using("triton"):
        assert net.model.ready(x, EMB) == {}


def test_a_block_computes_with_it() -> None:
    """Its second pass over a norm, too."""
    block = UNetBlock(8, 16, emb_channels=8, heads=2, init=Init(bias=1.0)).eval()
    randomise(block)
    block.recompute = True
    x = torch.randn(1, 8, 2, 2).contiguous(memory_format=torch.channels_last).requires_grad_()
    emb = EMB[:1]
    results = []
    with using("triton"):
        for given in (emb, together([block], x, emb)[block]):
            y, _ = block(x, given)
            results.append([y, *torch.autograd.grad(y.square().sum(), [x, *block.parameters()])])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_copies_are_the_same_bits_and_their_gradients_too() -> None:
    torch.manual_seed(0)
    shapes = [(6, 4), (12, 8), (5, 7), (6, 4), (6,), (6,), (3,)]
    blocked = [True, True, False, True, True, True, False]
    tensors = [torch.randn(shape, requires_grad=True) for shape in shapes]
    made = cast_together(tensors, blocked, torch.bfloat16)
    expected = [
        blocked_rows(t, 1, torch.bfloat16) if b else t.to(torch.bfloat16)
        for t, b in zip(tensors, blocked, strict=True)
    ]
    assert all(torch.equal(a, b) and a.is_contiguous() for a, b in zip(made, expected, strict=True))
    dy = [torch.randn(shape).bfloat16() for shape in shapes]
    for a, b in zip(
        torch.autograd.grad(made, tensors, dy),
        torch.autograd.grad(expected, tensors, dy),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_noise_level_by_number_on_a_gpu(family: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One evaluation of the row on the host gives what N on the device would; no tensor of N
    samples but the network's noise labels."""
    net = build_network(family, "SongUNet", 8, 1, 0, model_channels=8, channel_mult=[1],
                        num_blocks=1)  # fmt: skip
    x = torch.empty(3, 1, 8, 8)
    expected = net._coefficients(2.5, x)
    monkeypatch.setattr("fasttrain.models.networks.preconditioning._launches", lambda x: True)
    *factors, c_noise = net._coefficients(2.5, x)
    assert all(isinstance(factor, float) for factor in factors)
    for factor, tensor in zip((*factors, c_noise), expected, strict=True):
        torch.testing.assert_close(
            torch.as_tensor(factor).expand(3), torch.as_tensor(tensor).flatten().expand(3),
            rtol=3e-7, atol=1e-7,
        )  # fmt: skip
