"""The plain networks of exports against fasttrain's own, bit by bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fasttrain.models.export.pipeline import UNUSED
from fasttrain.models.export.plain_generator import one_hot, one_step, seed_latents
from fasttrain.models.export.plain_unet import build_plain
from fasttrain.models.networks.registry import arguments_of
from fasttrain.sampling.draws import sample_latents
from fasttrain.sampling.generate import generate
from fasttrain.sampling.sampler import Sampler
from fasttrain.settings import NetworkSettings
from tests.small_models import ADM, NCSNPP, PLAIN, small_network

NETWORKS: dict[str, dict[str, Any]] = {
    "ddpmpp": PLAIN,
    "ncsnpp": NCSNPP,
    "adm": ADM,
    "adm without classes": ADM | {"label_dim": 0},
    "skips": NCSNPP | {"encoder_type": "skip", "decoder_type": "skip", "label_dim": 3},
    "no noise level": PLAIN | {"embedding_type": "zero", "channel_mult": (1, 1)},
    "deeper": NCSNPP | {"img_resolution": 16, "channel_mult": (1, 2, 2), "num_blocks": 2},
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("sigma_mid", [None, 0.8])
def test_images_are_the_same_bits(name: str, sigma_mid: float | None) -> None:
    settings = NetworkSettings(**NETWORKS[name])
    network = small_network(settings)
    arguments = arguments_of(settings)
    for training in UNUSED:
        arguments.pop(training, None)
    plain = build_plain(**arguments)
    plain.load_state_dict(
        {key.removeprefix("model."): value for key, value in network.state_dict().items()}
    )
    size, classes = settings.img_resolution, settings.label_dim
    z = seed_latents(range(5), (settings.img_channels, size, size))
    labels = one_hot([seed % classes for seed in range(5)], classes) if classes else None
    with torch.no_grad():
        images = one_step(plain, z, labels, sigma_mid=sigma_mid)
    expected = generate(Sampler(sigma_mid=sigma_mid), network, range(5))
    assert expected.std() > 0.05
    assert torch.equal(images, expected)


def test_latents_of_a_seed_are_the_same_bits() -> None:
    seeds = [0, 1, 63, 2**31 + 5, 2**32, 2**62 + 12345]
    for shape in ((3, 5, 5), (1, 8, 8), (2,)):
        assert torch.equal(seed_latents(seeds, shape), sample_latents(torch.tensor(seeds), shape))
