"""Where feature weights come from, and what is said when they are missing, damaged or others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fasttrain.models.features.backbone import backbone
from fasttrain.models.features.network import build_features
from fasttrain.models.features.weights import find_weights, read_weights
from fasttrain.system.errors import UserError

DEIT = backbone("deit_base_distilled").published


@pytest.fixture(autouse=True)
def no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTTRAIN_WEIGHTS", raising=False)


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights of vgg16_bn, torchvision's classifier among them."""
    folder = tmp_path_factory.mktemp("weights")
    weights = backbone("vgg16_bn").new(7).state_dict()
    save_file({**weights, "classifier.0.bias": torch.zeros(3)}, folder / "vgg16_bn.safetensors")
    return folder


def test_a_file_a_folder_and_the_variable(vgg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = vgg / "vgg16_bn.safetensors"
    assert find_weights(backbone("vgg16_bn").published, file) == file
    assert find_weights(backbone("vgg16_bn").published, vgg) == file
    monkeypatch.setenv("FASTTRAIN_WEIGHTS", str(vgg))
    assert find_weights(backbone("vgg16_bn").published) == file
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    maps = build_features("vgg16_bn", 32)(images)
    assert [m.shape[1:] for m in maps] == [(128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2)]
    same = build_features("vgg16_bn", 32, weights="random", seed=7)(images)
    other = build_features("vgg16_bn", 32, weights="random", seed=8)(images)
    for a, b, c in zip(maps, same, other, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


@pytest.mark.parametrize("name", ["vgg16_bn", "deit_base_distilled"])
def test_missing_weights_name_the_file_its_hash_and_where_it_goes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = backbone(name).published
    with pytest.raises(UserError) as said:
        build_features(name)
    for part in (published.file, published.sha256, published.source, "FASTTRAIN_WEIGHTS"):
        assert part in str(said.value)
    for given in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError, match=str(given)):
            find_weights(backbone(name).published, given)
    monkeypatch.setenv("FASTTRAIN_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=str(tmp_path)):
        find_weights(backbone(name).published)


def test_lite0_comes_from_its_package_and_from_a_file() -> None:
    packaged = find_weights(backbone("lite0").published)
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    for a, b in zip(
        build_features("lite0", 32)(images),
        build_features("lite0", 32, weights=packaged)(images),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_a_damaged_file_of_the_published_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / DEIT.file
    torch.save({"model": {"cls_token": torch.zeros(1)}}, path)
    with pytest.raises(UserError, match=r"damaged: its SHA-256 begins with .*, not with df68dfff"):
        read_weights(DEIT, tmp_path)


def test_pth_files_may_nest_their_weights_but_run_no_code(tmp_path: Path) -> None:
    path = tmp_path / "deit_base_distilled.pth"
    torch.save({"model": {"cls_token": torch.ones(2)}}, path)
    assert torch.equal(read_weights(DEIT, path)["cls_token"], torch.ones(2))

    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    for content in (Hostile(), {"model": [1, 2]}, {"a": "b"}):
        torch.save(content, path)
        with pytest.raises(UserError, match="does not hold weights"):
            read_weights(DEIT, path)
    path.write_bytes(b"not a file of weights")
    with pytest.raises(UserError, match="does not hold weights"):
        read_weights(DEIT, path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("change", ["missing", "shape"])
def test_weights_that_do_not_fit_are_refused_by_name(change: str, tmp_path: Path) -> None:
    weights = dict(backbone("vgg16_bn").new(0).state_dict())
    if change == "missing":
        del weights["features.4.running_mean"]
    else:
        weights["features.4.running_mean"] = torch.zeros(5)
    path = tmp_path / "own.safetensors"
    save_file(weights, path)
    found = "missing" if change == "missing" else r"\(5,\)"
    with pytest.raises(UserError, match=rf"features.4.running_mean is {found} there, \(64,\) here"):
        build_features("vgg16_bn", 32, weights=path)
