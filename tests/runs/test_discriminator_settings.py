"""What a recipe may say of the discriminator, in whole runs: penalties, losses, augmentation,
precision, re-used fakes; and the features of the classes beside the data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fasttrain.analysis.report.page import write_report
from fasttrain.checkpoints.stats import read_stats
from fasttrain.data import ImageStream
from fasttrain.discriminator.class_means import class_features, stored_at
from fasttrain.models.features.network import build_features
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.errors import UserError
from fasttrain.system.processes import start, stop
from fasttrain.training import gan
from fasttrain.training.finetune import finetune
from fasttrain_data import convert
from tests.data_tools.conftest import write_image
from tests.runs.calling import call
from tests.runs.conftest import UNJUDGED

CPU = torch.device("cpu")
APPROXIMATED = ["r1={kind: approximated, weight: 10, sigma: 0.01}"]
EVERYTHING = [
    *APPROXIMATED,
    "loss=hinge",
    "discriminator.augment=[flip, color, translation, cutout]",
    "reuse_fakes=true",
]


def run(quick: list[str], path: Path, *changes: str) -> list[dict[str, float]]:
    """The losses and logits of a short run, line by line."""
    settings = load_settings(
        "digits-d2o-f", [*quick, "images=96", UNJUDGED, *changes, f"run={path}"], FinetuneSettings
    )
    try:
        finetune(settings, start())
    finally:
        stop()
    wanted = ("images", "loss/", "logits/")
    return [{k: v for k, v in line.items() if k.startswith(wanted)} for line in read_stats(path)]


def test_everything_at_once_is_split_and_resumed_like_any_run(
    quick: list[str], tmp_path: Path
) -> None:
    """Draws of augmentation and noise belong to the images, not to batches or processes."""
    whole = run(quick, tmp_path / "whole", *EVERYTHING)
    assert [line["images"] for line in whole] == [32, 64, 96]
    assert all(line["loss/r1"] > 0 for line in whole)  # in every step
    assert run(quick, tmp_path / "cut", *EVERYTHING, "images=64") == whole[:2]
    assert run(quick, tmp_path / "cut", *EVERYTHING) == whole
    parts = run(quick, tmp_path / "parts", *EVERYTHING, "micro_batch=8")
    for ours, expected in zip(parts, whole, strict=True):
        # Losses are means of logits of both signs, whose rounding is that of numbers around 1: a
        # CPU with AMX has 4e-4 of 0.018 in the third line.
        assert ours == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_each_setting_changes_what_it_should(quick: list[str], tmp_path: Path) -> None:
    """The first line's losses: generator (G), discriminator (D), penalty (R)."""
    plain = run(quick, tmp_path / "plain", "images=32")[0]
    changes = {
        "approximated": (APPROXIMATED, "R"),
        "hinge": (["loss=hinge"], "GD"),
        "augment": (["discriminator.augment=[cutout]"], "GD"),
        "reuse": (["reuse_fakes=true"], "D"),
        "relativistic": (["loss=relativistic"], "GD"),
        "unconditional": (["discriminator.conditional=false"], "GD"),
        "centring": (["centring=0.1"], ""),
    }
    for name, (settings, parts) in changes.items():
        line = run(quick, tmp_path / name, "images=32", *settings)[0]
        for part, key in (("G", "loss/generator"), ("D", "loss/discriminator")):
            assert (line[key] != plain[key]) == (part in parts), (name, key)
        assert ("loss/r1" in line) == ("R" in parts), name


ADDED = [
    "loss=relativistic",
    "centring=0.1",
    "r1={gamma: 0.01, interval: 2, share: 0.5}",
    "r2={gamma: 0.02, interval: 2, share: 0.5}",
    "discriminator.conditional=false",
    "generator.decay={kind: cosine, until: 96}",
    "r1.decay={kind: linear, until: 200, end: 0.5}",
]


def test_a_relativistic_loss_with_both_penalties_is_split_and_resumed_like_any_run(
    quick: list[str], tmp_path: Path
) -> None:
    """A share of the images is the same one in parts of a batch."""
    whole = run(quick, tmp_path / "whole", *ADDED)
    assert [("loss/r1" in line, "loss/r2" in line) for line in whole] == [
        (False, False), (False, False), (True, True)]  # fmt: skip
    assert all(line["loss/centring"] > 0 for line in whole)
    assert run(quick, tmp_path / "cut", *ADDED, "images=64") == whole[:2]
    assert run(quick, tmp_path / "cut", *ADDED) == whole
    parts = run(quick, tmp_path / "parts", *ADDED, "micro_batch=16")
    for ours, expected in zip(parts, whole, strict=True):
        # Squared gradients at fakes triple what two steps of Adam make of rounding; other images
        # would change them by tens of percent.
        assert ours.pop("loss/r2", 0) == pytest.approx(expected.pop("loss/r2", 0), rel=1e-2)
        assert ours == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_a_share_of_an_approximated_penalty_is_that_of_some_groups(
    quick: list[str], tmp_path: Path
) -> None:
    """The mean over the first and the third of four groups; the third in float32 the same."""
    both = [f"{name}={{kind: approximated, weight: 10, share: SHARE}}" for name in ("r1", "r2")]
    half, all_of_them = ([c.replace("SHARE", share) for c in both] for share in ("0.5", "1"))
    some = run(quick, tmp_path / "some", "images=32", *half)[0]
    everything = run(quick, tmp_path / "all", "images=32", *all_of_them)[0]
    parts = run(quick, tmp_path / "parts", "images=32", *half, "micro_batch=16")[0]
    for name in ("loss/r1", "loss/r2"):
        assert some[name] > 0
        assert some[name] != pytest.approx(everything[name], rel=1e-3)
        assert some[name] == pytest.approx(everything[name], rel=0.5)
        assert parts[name] == pytest.approx(some[name], rel=1e-3)
    assert some["loss/discriminator"] == pytest.approx(everything["loss/discriminator"], rel=1e-6)
    low = "discriminator.precision=bfloat16"
    apart = run(quick, tmp_path / "apart", "images=32", *half, low)[0]
    assert apart["loss/r1"] == pytest.approx(some["loss/r1"], rel=1e-2)


def test_the_penalty_of_a_small_sigma_is_computed_in_float32(
    quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bfloat16 the noise would drown in rounding: then the penalty's pass is another one, and
    its value that of a run in float32."""
    low = "discriminator.precision=bfloat16"
    full = run(quick, tmp_path / "full", "images=32", *APPROXIMATED)[0]["loss/r1"]
    apart = run(quick, tmp_path / "apart", "images=32", *APPROXIMATED, low)[0]["loss/r1"]
    assert apart == pytest.approx(full, rel=1e-3)
    monkeypatch.setattr(gan, "FINE_ENOUGH", 0.0)
    shared = run(quick, tmp_path / "shared", "images=32", *APPROXIMATED, low)[0]["loss/r1"]
    assert shared > 1.2 * full  # mostly rounding


@pytest.mark.parametrize("features", ["float32", "bfloat16"])
def test_exact_r1_through_the_attention_of_the_network_itself(
    quick: list[str], tmp_path: Path, features: str
) -> None:
    """The fused attention that torch chooses for channels_last, as on a GPU, has no second
    derivative: the numbers are those of contiguous memory, where it chooses none."""
    own = ["discriminator.backbones=[{name: self}]", "discriminator.resolutions=[8, 4]"]
    own += [f"r1={{gamma: 1.0e-3, interval: 1, features: {features}}}", "precision=float32"]
    own += ["discriminator.class_embedding=random"]  # else Lite0's of all images, at 224 pixels
    last = run(quick, tmp_path / "last", *own, "memory_format=channels_last")
    plain = run(quick, tmp_path / "plain", *own, "memory_format=contiguous")
    tolerance = 2e-2 if features == "bfloat16" else 1e-4
    assert last[1]["loss/r1"] == pytest.approx(plain[1]["loss/r1"], rel=tolerance)
    assert last[2]["loss/r1"] > 0


def test_bfloat16_is_described_and_exact_r1_stays_float32(quick: list[str], tmp_path: Path) -> None:
    low = run(quick, tmp_path / "low", "discriminator.precision=bfloat16", "r1.interval=1")
    full = run(quick, tmp_path / "full", "r1.interval=1")
    for ours, exact in zip(low, full, strict=True):
        assert ours["loss/generator"] != exact["loss/generator"]
        assert ours["loss/generator"] == pytest.approx(exact["loss/generator"], rel=0.05)
    assert low[1]["loss/r1"] == pytest.approx(full[1]["loss/r1"], rel=0.05)
    (row,) = json.loads((tmp_path / "low" / "discriminator.json").read_text())["backbones"]
    assert row["name"] == "lite0"
    assert 0.9 < row["logits"] < 1
    assert 0.5 < row["gradient"] < 1
    page = write_report(tmp_path / "low").read_text()
    assert f"{row['logits']:.4f}" in page
    assert "Computed in bfloat16" in page
    assert "random, not pretrained" not in page
    (row,) = json.loads((tmp_path / "full" / "discriminator.json").read_text())["backbones"]
    assert "logits" not in row


def test_random_features_are_warned_of(quick: list[str], tmp_path: Path) -> None:
    backbones = "discriminator.backbones=[{name: vgg16_bn, resolution: 32, weights: random}]"
    run(quick, tmp_path / "run", "images=32", backbones)
    assert (
        "features of vgg16_bn are random, not pretrained"
        in write_report(tmp_path / "run").read_text()
    )


def test_class_features_of_the_whole_data_set(
    quick: list[str], digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(digits, tmp_path / "digits")
    path = stored_at(data, 32)
    path.unlink()
    changes = [*quick, f"data.path={data}", "run=none"]
    settings = load_settings("digits-d2o-f", changes, FinetuneSettings)
    some = class_features(settings, CPU)
    status, out, _ = call(capsys, "class-features", data, "--resolution", 32)
    assert status == 0
    assert str(path) in out
    means = load_file(path)["means"]
    assert torch.equal(class_features(settings, CPU), means)
    torch.testing.assert_close(some, means, rtol=1e-3, atol=1e-3)  # few images: all of them

    features = build_features("lite0", 32)
    batch = next(ImageStream(data, batch=1797, streams=1, seed=3))  # in another order
    assert batch.class_labels is not None
    with torch.no_grad():
        pooled = torch.cat([features(p.images)[-1].mean((2, 3)) for p in batch.split(256)])
    for k in range(10):
        expected = pooled[batch.class_labels[:, k] == 1].mean(0)
        torch.testing.assert_close(means[k], expected, rtol=1e-3, atol=1e-3)

    sound = path.read_bytes()
    path.write_bytes(sound[:100])
    with pytest.raises(UserError, match=r"cannot be read.*fasttrain class-features"):
        class_features(settings, CPU)
    path.write_bytes(sound)
    fewer = settings.network.model_copy(update={"label_dim": 7})
    with pytest.raises(UserError, match="does not belong to these data"):
        class_features(settings.model_copy(update={"network": fewer}), CPU)


def test_class_features_of_one_class_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "photos/a.png", 1)
    convert(tmp_path / "photos", tmp_path / "set")
    status, _, error = call(capsys, "class-features", tmp_path / "set")
    assert status == 2
    assert error == (
        f"fasttrain: error: {tmp_path / 'set'} has one class: a discriminator has no class "
        "embeddings for it\n"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("r1={kind: exact}", "gamma: set the strength"),
        ("r1={gamma: 1, share: 0.3}", "share: 0.3 is not 1 / k"),
        ("r1={gamma: 1, share: 0.125}", "which do not divide batch 32; set a larger share"),
        ("r2={gamma: 1, interval: 3}", "exact penalties share their step"),
        ("generator.decay={kind: cosine}", "set the number of images that the cosine decay takes"),
        ("r1={kind: lazy, gamma: 1}", "exact"),
        ("discriminator.augment=[blur]", "augment"),
        ("discriminator.backbones=[{name: vgg16_bn}]", "vgg16_bn-6c64b313.pth"),
    ],
)
def test_bad_settings_are_one_line(
    change: str, message: str, quick: list[str], tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.delenv("FASTTRAIN_WEIGHTS", raising=False)
    status, _, err = call(
        capsys, "finetune", "digits-d2o-f", *quick, change, f"run={tmp_path / 'run'}"
    )
    assert status == 2
    assert message in err
    assert "Traceback" not in err
