"""A model measured from its file: the numbers are those of the plain functions on the same images,
and nothing is written that was not asked for."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fasttrain.checkpoints.saved import SavedRun
from fasttrain.evaluation import (
    comparison,
    extract,
    frechet_distance,
    frechet_distance_pca,
    kernel_distance,
    load_extractor,
    precision_recall,
)
from fasttrain.evaluation.collect import parts_of
from fasttrain.evaluation.measure import evaluate_model, reference_stats
from fasttrain.evaluation.protocol import balanced
from fasttrain.evaluation.reference import open_images
from fasttrain.evaluation.request import Request, check_counts, components_of
from fasttrain.evaluation.result import text
from fasttrain.models.files.model_file import ModelInfo
from fasttrain.models.load import load_model
from fasttrain.sampling.generate import generate
from fasttrain.sampling.pictures import to_uint8
from fasttrain.sampling.sampler import Churn, Sampler
from fasttrain.system.errors import UserError
from tests.evaluation.conftest import write_model
from tests.evaluation.results import ALONE, metrics_of, values
from tests.runs.calling import call


def real_features(shards: Path) -> Tensor:
    images = open_images(shards)
    return extract(load_extractor(), (x for _, x in images.batches(parts_of(150, 64, ALONE))))


def test_the_numbers_are_those_of_the_plain_functions(
    generator: Path, shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "result.json"
    request = Request(data=str(shards), seeds="5-84", out=out)
    result = evaluate_model(generator, request, ALONE)
    network, _ = load_model(generator)
    fake = extract(load_extractor(), generate(Sampler(), network, range(5, 85)).split(64))
    real = real_features(shards)
    expected = {
        "fd": frechet_distance_pca(real, fake),
        "fd_full": frechet_distance(real, fake),
        "kd": kernel_distance(real, fake),
        **precision_recall(real, fake),
    }
    assert values(result) == pytest.approx(expected, rel=1e-4)
    for name in ("fd", "fd_full", "kd"):
        estimate = metrics_of(result)[name]
        assert estimate["low"] < estimate["value"] < estimate["high"]
    model = result["model"]
    assert result["rows"]["model"]["sampler"] == "one step at noise level 80"
    assert (model["seeds"], model["classes"]) == ("5-84", "in turn by seed")
    protocol = result["protocol"]
    assert protocol["images"] == 80
    assert protocol["reference"] == open_images(shards).protocol
    assert protocol["extractor"] == load_extractor().protocol
    assert json.loads(out.read_text()) == {k: v for k, v in result.items() if k != "path"}
    assert list(tmp_path.iterdir()) == [out]


def test_statistics_of_the_reference_give_the_same_fd_under_the_same_code(
    generator: Path, shards: Path, folder: Path, tmp_path: Path
) -> None:
    ref = tmp_path / "ref.npz"
    reference_stats(str(shards), ref, Request(), ALONE)
    found = {
        kind: evaluate_model(
            generator,
            Request(data=str(data), samples=70, metrics=("fd",), out=tmp_path / f"{kind}.json"),
            ALONE,
        )
        for kind, data in (("shards", shards), ("statistics", ref), ("folder", folder))
    }
    kept, known = values(found["shards"]), values(found["statistics"])
    assert known == kept
    assert values(found["folder"]) == pytest.approx(kept, rel=1e-4)
    codes = {kind: result["protocol"]["code"] for kind, result in found.items()}
    assert codes["statistics"] == codes["shards"] != codes["folder"]


def test_a_diffusion_model_takes_steps_and_saves_its_images_when_asked(
    diffusion: Path, shards: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    request = Request(
        data=str(shards),
        seeds="3-7",
        steps=2,
        churn="0.5,0.01,70,1.1",
        metrics=("kd",),
        save_images=images,
        out=tmp_path / "result.json",
    )
    result = evaluate_model(diffusion, request, ALONE)
    assert set(metrics_of(result)) == {"kd"}
    assert result["rows"]["model"]["sampler"] == (
        "2 Heun steps (3 evaluations), churn 0.5 from 0.01 to 70, noise 1.1"
    )
    network, _ = load_model(diffusion)
    sampler = Sampler("heun", steps=2, churn=Churn(0.5, 0.01, 70, 1.1))
    expected = to_uint8(generate(sampler, network, range(3, 8)))[:, 0].numpy()
    names = [f"{seed:010d}.png" for seed in range(3, 8)]
    assert sorted(path.name for path in images.iterdir()) == names
    for name, pixels in zip(names, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(images / name)), pixels)
    with pytest.raises(UserError, match="is not empty"):
        evaluate_model(diffusion, request, ALONE)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"data": None}, "does not record its training data: name a reference"),
        ({"resolution": 16}, "images are 16x16 and .* generates 8x8.* --resolution 8"),
        ({"extractor": "resnet"}, "unknown extractor 'resnet'"),
        ({"metrics": ("is",)}, "only the extractor inception classifies"),
        ({"metrics": ("fid",)}, "--metrics fid: choose from fd, fd_full"),
        ({"samples": 9, "seeds": "0-8"}, "set one of them"),
        ({"seeds": "4"}, "1 image has no distribution"),
        ({"steps": 18}, "leave --steps out"),
        ({"data": "r.npz", "resolution": 8}, "--resolution 8: r.npz holds statistics, not images"),
        ({"churn": "40"}, "is a one-step generator: leave --churn out"),
        ({"seeds": "0-9,4"}, "a seed occurs twice"),
        ({"samples": 3}, "precision and recall use 3 neighbours"),
    ],
)
def test_what_cannot_be_measured_is_said(
    change: dict[str, Any],
    reason: str,
    generator: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request = Request(**({"data": str(folder), "out": tmp_path / "result.json"} | change))
    monkeypatch.setattr(comparison, "generate", None)  # nothing is made before
    with pytest.raises(UserError, match=reason):
        evaluate_model(generator, request, ALONE)
    assert not list(tmp_path.iterdir())


def test_counts_are_checked_for_the_metrics_and_balance_for_the_seeds() -> None:
    lite2 = load_extractor()

    def check(metrics: str, generated: int, real: int | None) -> list[str]:
        return check_counts(metrics.split(), generated, {"images": real}, lite2, 64)

    assert check("fd kd precision recall", 65, 65) == []
    assert check("kd", 2, 2) == []
    assert check("fd fd_full", 2000, None) == []
    (warned,) = check("fd", 64, 65)
    assert "fd compares 64 dimensions, which 64 generated images do not span" in warned
    assert len(check("fd fd_full", 1280, 1280)) == 2
    for metrics, generated, real, reason in (
        ("precision", 70, 3, "3 real images: precision and recall"),
        ("recall", 3, 70, "3 generated images: precision and recall"),
        ("kd", 70, 1, "1 real image has no distribution"),
    ):
        with pytest.raises(UserError, match=reason):
            check(metrics, generated, real)
    assert balanced(range(9), 0)
    assert balanced(range(5, 28), 10)
    assert not balanced(range(0, 100, 10), 10)
    assert not balanced([0, 1, 11, 21], 10)


def test_a_small_reference_takes_fewer_components_and_the_protocol_says_so(
    run: Path, generator: Path, folder: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    for path in sorted(folder.iterdir())[:12]:
        shutil.copy(path, small)
    request = Request(data=str(small), samples=12, metrics=("fd",), out=tmp_path / "result.json")
    with pytest.warns(UserWarning, match="fd uses 11 leading components instead of 64"):
        result = evaluate_model(generator, request, ALONE)
    assert result["protocol"]["components"] == 11
    assert "11 leading components" in text(result)
    info, lite2 = ModelInfo.of(SavedRun.open(run)), load_extractor()
    assert info.settings is not None
    for own in (8, None):  # the run's, on its own data
        evaluate = info.settings.evaluate.model_copy(update={"components": own})
        of_run = replace(info, settings=info.settings.model_copy(update={"evaluate": evaluate}))
        assert components_of(Request(), of_run, {"images": 20}, lite2) == (own, [])
        assert components_of(request, of_run, {"images": 20}, lite2)[0] == 19


def test_results_of_other_models_and_seeds_lie_beside_each_other_and_metrics_join(
    shards: Path, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "model.safetensors", "pretrain")

    def paths(**options: Any) -> list[str]:
        common = {"data": str(shards), "samples": 6, "steps": 1, "metrics": ("kd",)}
        evaluate_model(model, Request(**(common | options)), ALONE)
        return sorted(path.name for path in tmp_path.glob("model.evaluation-*.json"))

    (first,) = paths()
    kept = metrics_of(json.loads((tmp_path / first).read_text()))
    assert paths(metrics=("precision", "recall")) == [first]
    joined = metrics_of(json.loads((tmp_path / first).read_text()))
    assert list(joined) == ["kd", "precision", "recall"]
    assert joined["kd"] == kept["kd"]
    assert joined["precision"]["low"] < joined["precision"]["high"]
    assert (joined["recall"]["low"], joined["recall"]["why"]) == (None, "not defined for recall")
    assert len(paths(steps=2)) == 2
    assert len(paths(samples=None, seeds="10-15")) == 3
    before = set(paths())
    (low,) = set(paths(precision="bfloat16")) - before
    row = json.loads((tmp_path / low).read_text())["rows"]["model"]
    assert row["sampler"].endswith(", bfloat16")
    assert row["metrics"]["kd"]["value"] != kept["kd"]["value"]
    assert metrics_of(json.loads((tmp_path / first).read_text())) == joined
    one_class = paths(samples=None, seeds="0,10,20,30")
    results = [json.loads((tmp_path / name).read_text()) for name in one_class]
    assert [r["protocol"]["balanced"] for r in results].count(False) == 1


def test_inception_against_statistics_as_edm_publishes_them(
    generator: Path, inception_file: Path, tmp_path: Path
) -> None:
    """Random weights: the way of the numbers, not their size."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.randn(300, 2048, dtype=torch.float64) * 1e-8
    np.savez(tmp_path / "edm.npz", mu=x.mean(0).numpy(), sigma=x.T.cov().numpy())
    request = Request(
        data=str(tmp_path / "edm.npz"), extractor="inception", weights=inception_file, samples=4
    )
    result = evaluate_model(generator, request, ALONE)
    assert set(metrics_of(result)) == {"fd", "is"}
    network, _ = load_model(generator)
    extractor = load_extractor("inception", weights=inception_file)
    fake = extractor(generate(Sampler(), network, range(4)))
    assert values(result)["fd"] == pytest.approx(frechet_distance(x, fake), rel=1e-3, abs=0)
    assert values(result)["is"] >= 1
    assert result["protocol"]["components"] is None
    assert result["protocol"]["reference"]["images"] is None
    name = f"generator.evaluation-inception-{result['protocol']['code']}-*.json"
    assert list(generator.parent.glob(name)) == [Path(result["path"])]


def test_the_commands_print_the_numbers_with_their_protocol(
    capsys, shards: Path, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "model.safetensors", "finetune")
    ref = tmp_path / "ref.npz"
    status, out, error = call(capsys, "reference-stats", shards, "--out", ref)
    assert (status, out) == (0, f"statistics of 150 images: {ref}\n"), error
    options = ("--data", ref, "--samples", 70, "--batch", 32, "--metrics")
    status, out, error = call(capsys, "evaluate", model, *options, "fd")
    assert status == 0, error
    (path,) = tmp_path.glob("model.evaluation-lite2-*.json")
    result = json.loads(path.read_text())
    assert result["made"]["batch"] == 32
    for estimate in metrics_of(result).values():
        assert f"{estimate['value']:.5g}" in out
    assert f"protocol {result['protocol']['code']}" in out
    assert "150 images of 8x8" in out
    status, _, error = call(capsys, "evaluate", model, *options, "fd,kd")
    assert status == 2
    assert "--metrics kd: it needs the reference's images" in error
    wrong = ("reference-stats", shards, "--out", tmp_path / "ref.json")
    assert call(capsys, *wrong)[0] == 2
