"""Autoencoders of latents: with a codebook as diffusers computes it, and out of latent-diffusion's
files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from fasttrain.models.files.edm_pickle import read_checkpoint
from fasttrain.models.files.vae import VAE, decode, load_vae
from fasttrain.models.load import load_model
from fasttrain.models.networks.autoencoder import Codebook
from fasttrain.sampling.generate import generate
from fasttrain.sampling.pictures import to_uint8
from fasttrain.sampling.sampler import Sampler
from fasttrain.system.errors import UserError
from tests.model_goldens import cases, folder
from tests.runs.calling import call
from tests.small_models import diffusers_unet

LDM = folder() / "ldm-uncond.ckpt"
FIRST = "first_stage_model."


def vq_model(codes: int = 2500) -> Any:
    """A small one of diffusers', with more codes than are compared at once."""
    torch.manual_seed(0)
    network = pytest.importorskip("diffusers").VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        latent_channels=3,
        num_vq_embeddings=codes,
        norm_num_groups=4,
        scaling_factor=0.5,
    )
    torch.nn.init.normal_(network.quantize.embedding.weight)
    return network.eval()


@torch.no_grad()
def test_a_vq_model_computes_as_diffusers_does(tmp_path: Path) -> None:
    theirs = vq_model()
    theirs.save_pretrained(tmp_path / "vqvae")
    ours = load_vae(tmp_path)
    latents, images = torch.randn(3, 3, 8, 8), torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(ours.network.decode(latents), theirs.decode(latents).sample)
    mean, deviation = ours.network.encode(images)
    torch.testing.assert_close(mean, theirs.encode(images).latents)
    assert not deviation.any()
    expected = theirs.decode(latents / 0.5).sample
    torch.testing.assert_close(decode(ours, latents, None), expected)


def test_gradients_pass_the_codebook() -> None:
    torch.manual_seed(0)
    book = Codebook(50, 3)
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    out = book(x)
    rows = out.detach().movedim(1, -1).reshape(-1, 3)
    assert (rows[:, None] - book.embedding.weight).abs().amax(2).amin(1).max() < 1e-6
    weight = torch.randn_like(out)
    (gradient,) = torch.autograd.grad((out * weight).sum(), x)
    assert torch.equal(gradient, weight)


def first_stage() -> dict[str, Tensor]:
    stored = read_checkpoint(LDM).tensors.items()
    return {n.removeprefix(FIRST): v.tensor() for n, v in stored if n.startswith(FIRST)}


@torch.no_grad()
def same(one: VAE, other: VAE, *, scale: float) -> None:
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(one.network.decode(z), other.network.decode(z))
    assert one.sha256 != other.sha256 if one.scale != other.scale else one.sha256 == other.sha256
    assert other.scale == scale


def test_an_autoencoder_alone_is_that_of_the_model(tmp_path: Path) -> None:
    """As its own training writes it, with a discriminator beside it; and in safetensors."""
    whole = load_vae(LDM)
    assert whole.scale == 0.3125
    weights = first_stage()
    beside = {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.bias": torch.zeros(2)}
    torch.save({"state_dict": weights | beside, "epoch": 3}, tmp_path / "kl.ckpt")
    save_file(weights, tmp_path / "kl.safetensors")
    for name in ("kl.ckpt", "kl.safetensors"):
        same(whole, load_vae(tmp_path / name), scale=1.0)


@torch.no_grad()
def test_a_vq_first_stage(tmp_path: Path) -> None:
    """With the same decoder, on codes."""
    weights = first_stage()
    for name in ("encoder.conv_out.weight", "encoder.conv_out.bias", "quant_conv.bias"):
        weights[name] = weights[name][:4]
    weights["quant_conv.weight"] = weights["quant_conv.weight"][:4, :4].contiguous()
    codes = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)).half()
    weights["quantize.embedding.weight"] = codes
    torch.save({FIRST + name: value for name, value in weights.items()}, tmp_path / "vq.ckpt")
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    nearest = torch.cdist(z.movedim(1, -1).reshape(-1, 4), codes.float()).argmin(1)
    on_codes = codes.float()[nearest].reshape(2, 8, 8, 4).movedim(-1, 1)
    found = load_vae(tmp_path / "vq.ckpt").network
    torch.testing.assert_close(found.decode(z), load_vae(LDM).network.decode(on_codes))
    assert found.encode(torch.randn(1, 3, 16, 16))[0].shape == (1, 4, 8, 8)


def test_a_model_is_sampled_with_its_own_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = next((case for case in cases() if case.name == "ldm-uncond"), None)
    if case is None:
        pytest.skip("no such case in this folder")
    model, out = tmp_path / "ldm.safetensors", tmp_path / "x.png"
    arguments = case.arguments(tmp_path / "c.json")
    assert call(capsys, "import", *arguments, "--out", model)[0] == 0
    said = ("sample", model, "--vae", LDM, "--seeds", "0", "--steps", 1, "--out", out)
    status, _, error = call(capsys, *said)
    assert status == 0, error
    assert out.is_file()


@torch.no_grad()
def test_a_folder_with_a_vqvae_makes_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unconditional latent-diffusion model as diffusers has it: three channels, no image's."""
    vae, place = vq_model(), tmp_path / "ldm"
    vae.save_pretrained(place / "vqvae")
    diffusers_unet().save_pretrained(place / "unet")
    (place / "scheduler").mkdir()
    (place / "scheduler/scheduler_config.json").write_text('{"_class_name": "DDIMScheduler"}')
    model, out = tmp_path / "ldm.safetensors", tmp_path / "x.png"
    assert call(capsys, "import", place, "--out", model)[0] == 0
    words = ("sample", model, "--seeds", "3", "--steps", 1, "--out", out)
    status, _, error = call(capsys, *words)
    assert status == 2
    assert "name their autoencoder with --vae PATH" in error
    status, _, error = call(capsys, *words, "--vae", place)
    assert status == 0, error
    loaded, info = load_model(model)
    latents = generate(Sampler.of(info, 1), loaded, [3], decoded=False)
    expected = to_uint8(vae.decode(latents / 0.5).sample)[0].permute(1, 2, 0).numpy()
    made = np.asarray(Image.open(out).resize((16, 16), Image.Resampling.NEAREST))
    assert np.abs(made.astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"encoder.down.1.attn.0.q.weight": (4, 4)}, "has attention between its levels' blocks"),
        ({"quant_conv.weight": None}, "does not fit an autoencoder"),
        ({"decoder.conv_in.weight": (3,)}, "does not fit an autoencoder"),
        ({"decoder.conv_out.weight": None}, "is refused: it has no decoder.conv_out.weight"),
        ({"decoder.conv_out.weight": ()}, "is refused: its weights or settings are not of the"),
        ({"decoder.up_blocks.0.weight": (2,)}, "without its config: name the folder it lies in"),
        ({"encoder.down.0.block.0.conv1.weight": None}, "holds no autoencoder of latent-diff"),
        ({"scale_factor": (2,)}, "is refused: its weights or settings are not of the"),
    ],
)
def test_other_files_are_refused_in_one_line(
    change: dict[str, tuple[int, ...] | None], why: str, tmp_path: Path
) -> None:
    weights = first_stage()
    for name, shape in change.items():
        if shape is None:
            del weights[name]
        else:
            weights[name] = torch.ones(shape)
    torch.save(weights, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=why) as caught:
        load_vae(tmp_path / "x.ckpt")
    assert len(str(caught.value).splitlines()) == 1
    assert "x.ckpt" in str(caught.value)
