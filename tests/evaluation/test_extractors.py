"""The features of images, and that distances on Lite2's order damaged real digits."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

from fasttrain.evaluation import Extractor, evaluate_features, extract, load_extractor
from fasttrain.models.features.efficientnet_lite import load_pretrained, weights_path
from fasttrain.models.features.inception import InceptionV3
from fasttrain.system.errors import UserError


@cache
def lite2() -> Extractor:
    return load_extractor("lite2")


def digits() -> Tensor:
    return torch.from_numpy(load_digits().images).float()[:, None] / 8 - 1


def colours(n: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, 3, size, size, generator=generator) * 2.2 - 1.1


@pytest.mark.parametrize("size", [8, 64, 100])
def test_features_are_the_networks_of_the_rounded_resized_images(size: int) -> None:
    x = colours(2, size)
    levels = ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    with torch.no_grad():
        resized = F.interpolate(levels.float() / 127.5 - 1, size=(64, 64), mode="bilinear")
        expected = load_pretrained("lite2").pooled(resized)
    actual = lite2()(x)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(lite2()(levels.float() / 127.5 - 1), actual)


def test_one_channel_is_grey_and_the_input_is_left_alone() -> None:
    x = digits()[:3]
    kept = x.clone()
    torch.testing.assert_close(lite2()(x), lite2()(x.repeat(1, 3, 1, 1)))
    assert torch.equal(x, kept)
    assert not lite2()(x.requires_grad_()).requires_grad


def test_extract_is_independent_of_the_batches() -> None:
    x = digits()[:7]
    features = extract(lite2(), x.split(3))
    assert features.shape == (7, lite2().width)
    torch.testing.assert_close(features, lite2()(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="no images"):
        extract(lite2(), [])


def test_protocol_names_what_the_numbers_depend_on() -> None:
    digest = hashlib.sha256(weights_path("lite2").read_bytes()).hexdigest()
    assert load_extractor("lite2", resolution=96).protocol == {
        "extractor": "lite2",
        "resolution": 96,
        "weights": digest[:12],
        "rounding": "uint8",
    }
    assert lite2().protocol["resolution"] == 64


def test_unknown_extractors_resolutions_and_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown extractor 'resnet'.*lite2, lite0, inception"):
        load_extractor("resnet")
    with pytest.raises(UserError, match="32 or more"):
        load_extractor("lite2", resolution=16)
    with pytest.raises(UserError, match="has its own weights"):
        load_extractor("lite2", weights=tmp_path)


def test_inception_takes_levels_and_classifies_without_the_bias(
    inception_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = torch.load(inception_file, weights_only=True)
    network = InceptionV3().eval()
    network.load_state_dict(weights)
    monkeypatch.setenv("FASTTRAIN_WEIGHTS", str(inception_file.parent))
    extractor = load_extractor("inception")
    x = digits()[:2]
    levels = ((x + 1) * 127.5).round().expand(-1, 3, -1, -1)
    with torch.no_grad():
        expected = network.pooled(levels)
    features = extractor(x)
    scale = expected.abs().max().item()
    assert scale > 0
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-4 * scale)
    assert extractor.width == 2048
    assert extractor.classes == 1008
    torch.testing.assert_close(extractor.logits(features), features @ weights["fc.weight"].T)
    digest = hashlib.sha256(inception_file.read_bytes()).hexdigest()
    assert extractor.protocol == {
        "extractor": "inception",
        "resolution": 299,
        "resize": "TensorFlow 1, bilinear",
        "weights": digest[:12],
        "published": False,
        "rounding": "uint8",
    }
    with pytest.raises(UserError, match="resizes images to 299 itself"):
        load_extractor("inception", resolution=128)
    with pytest.raises(UserError, match="lite2 does not classify"):
        lite2().logits(features)


def test_weights_of_inception_that_are_missing_damaged_or_others_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FASTTRAIN_WEIGHTS", raising=False)
    file = "pt_inception-2015-12-05-6726825d.pth"
    with pytest.raises(UserError) as said:
        load_extractor("inception")
    for part in (file, "SHA-256 6726825d", "pytorch-fid", "FASTTRAIN_WEIGHTS", "--weights"):
        assert part in str(said.value)
    torch.save({"fc.weight": torch.zeros(1008, 2048)}, tmp_path / file)
    with pytest.raises(UserError, match=r"damaged: its SHA-256 begins with .*, not with 6726825d"):
        load_extractor("inception", weights=tmp_path)
    torch.save({"fc.weight": torch.zeros(1000, 2048)}, tmp_path / "torchvision.pth")
    with pytest.raises(UserError, match="does not fit inception: "):
        load_extractor("inception", weights=tmp_path / "torchvision.pth")


def test_distances_of_real_digits_grow_with_noise_above_the_real_floor() -> None:
    images = digits()[:800]
    # They are sorted by who wrote them.
    first, second = torch.randperm(800, generator=torch.Generator().manual_seed(0)).split(400)
    noise = torch.randn(images[second].shape, generator=torch.Generator().manual_seed(0))
    real = extract(lite2(), images[first].split(100))
    results = [
        evaluate_features(
            real, extract(lite2(), (images[second] + level * noise).split(100)), components=64
        )
        for level in (0, 0.1, 0.3)
    ]
    # In all 1280 dimensions 400 images leave a large floor: why `fd` is the number to read.
    for metric, share in (("fd", 0.2), ("fd_full", 0.5), ("kd", 0.02)):
        floor, little, much = (result[metric] for result in results)
        assert floor < share * little, metric
        assert little < much, metric
    assert abs(results[0]["kd"]) < 0.02 * results[1]["kd"]
