"""`fasttrain new`: from a folder of photos to recipes that train."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from fasttrain.analysis.proposal import measured
from fasttrain.analysis.proposal.choices import choose, resolution_for
from fasttrain.analysis.proposal.measured import Pace, measure
from fasttrain.cli import new as command
from fasttrain.settings import FinetuneSettings, PretrainSettings, RunSettings
from fasttrain.settings.recipes import load_settings
from fasttrain_data.survey import Survey, look_at
from tests.runs.calling import call


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of 20 photos of two sizes, one of them cut short."""
    random = np.random.default_rng(0)
    for number in range(40):
        size = (30 + number % 2, 24, 3)
        path = tmp_path / "photos" / ("sea" if number % 2 else "street") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, size, np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:400])
    return tmp_path / "photos"


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "measure", lambda *_: Pace(10.0, 0.5))


def test_a_look_at_a_folder(photos: Path) -> None:
    survey = look_at(photos)
    assert (survey.images, survey.classes, survey.channels) == (40, {"sea": 20, "street": 20}, 3)
    assert [name for name, _ in survey.unreadable] == ["sea/39.png"]
    assert (survey.smallest, survey.largest, survey.square) == ((24, 30), (24, 31), None)
    assert "1 of 40 cannot be read:" in survey.lines()


def test_two_recipes_that_say_why(
    capsys, photos: Path, unmeasured: None, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, error = call(capsys, "new", "photos", "--data", photos)
    assert status == 0, error
    for line in (
        "40 images, 2 classes: sea 20, street 20",
        "data/photos: 39 images of 16x16 in 39 shards",
        "left out: 1 (1 damaged image)",
        "photos-edm.yaml: 35,968 images, 60 min here",
        "next: fasttrain pretrain photos-edm.yaml",
    ):
        assert line in out.splitlines()
    text = Path("photos-edm.yaml").read_text()
    bare = [line for line in text.splitlines() if "#" not in line and not line.endswith(":")]
    assert len(bare) <= 10, bare  # choices have reasons, above or beside them
    first = load_settings("photos-edm.yaml", [], PretrainSettings)
    assert (first.network.img_resolution, first.network.label_dim) == (16, 2)
    assert first.evaluate.every is None
    again = call(capsys, "new", "photos", "--data", photos)
    assert (again[0], "--force" in again[2]) == (2, True)
    made = Path("data/photos/index.json").read_bytes()
    assert call(capsys, "new", "photos", "--data", photos, "--force")[0] == 0  # the set is kept
    other = call(capsys, "new", "photos", "--data", photos, "--force", "--resolution", "8")
    assert (other[0], "data/photos holds another shard set" in other[2]) == (2, True)
    assert Path("data/photos/index.json").read_bytes() == made
    # What it says is next works, and so does what comes then.
    small = ["images=64", "network.model_channels=16", "batch=32", "data.workers=0"]
    assert call(capsys, "pretrain", "photos-edm.yaml", *small)[0] == 0
    second = load_settings("photos-d2o-f.yaml", [], FinetuneSettings)
    assert second.network.model_channels == 16
    assert second.network.augment_dim == 0
    assert second.evaluate.samples == 19  # half of the 39 that can be read, as evaluations need
    status, out, error = call(capsys, "sample", "runs/photos-edm", "--class", "sea", "--seeds", "0")
    assert status == 0, error


def test_what_is_not_read_is_named_and_is_not_damaged(
    capsys, photos: Path, unmeasured: None, tmp_path: Path
) -> None:
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
    (photos / "sea/renamed.jpg").write_bytes(heic)
    (photos / "sea/photo.HEIC").write_bytes(heic)
    (photos / "sea/short.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    words = ("new", "p", "--data", photos, "--out", tmp_path / "my o", "--hours", "0.001")
    status, out, error = call(capsys, *words)
    assert status == 0, error
    recipe = tmp_path / "my o/p-edm.yaml"
    assert f"#   fasttrain pretrain '{recipe}'" in recipe.read_text()
    assert "passed over, no images by name: 1 (1 .heic)" in out
    assert "left out: 3 (1 HEIC, not read: convert it to PNG or JPEG, 2 damaged image)" in out
    # A time in which nothing is learnt is said to be.
    (note,) = [line for line in out.splitlines() if line.startswith("note: pretrain")]
    assert note == (
        "note: pretrain takes 33 min, more than --hours 0.001 allows: fewer images than 19,968 "
        "show nothing"
    )
    assert "note: finetune takes 13 min" in out


def test_what_is_said_of_a_source_comes_first(capsys, photos: Path, tmp_path: Path) -> None:
    for path in photos.glob("*/*"):
        path.rename(photos / path.name)
    (photos / "labels.csv").write_text("file,label\n")
    for number in range(30):
        (photos / f"{number:02d}.png").unlink()
    status, out, error = call(capsys, "new", "p", "--data", photos, "--out", tmp_path / "o")
    assert (status, "has 10 images: 16 are the least" in error) == (2, True)
    table, made = photos / "labels.csv", tmp_path / "o/data/p"
    assert out.splitlines()[-1] == (
        f"note: all images are one class: if {table} has their labels, use --labels {table}. "
        f"--labels belongs to `fasttrain-data convert {photos} {made} --resolution 16 --force`; "
        f"then: `fasttrain new p --data {made} --out {tmp_path / 'o'} --force`"
    )


def test_it_asks_for_what_is_not_given(
    capsys, photos: Path, unmeasured: None, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"mine\n{photos}\n\n"))
    status, _, error = call(capsys, "new")
    assert status == 0, error
    assert Path("mine-edm.yaml").is_file()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.stdin", io.StringIO("again\n~/photos\n\n"))
    status, _, error = call(capsys, "new")
    assert status == 0, error
    monkeypatch.setattr("sys.stdin", io.StringIO("mine\n"))
    status, _, error = call(capsys, "new")
    assert (status, "fasttrain new photos --data FOLDER" in error) == (2, True)
    monkeypatch.setattr("sys.stdin", None)  # as after `<&-`
    status, _, error = call(capsys, "new")
    assert (status, "fasttrain new photos --data FOLDER" in error) == (2, True)


def test_both_recipes_can_be_looked_at_before_the_first_training(
    capsys, photos: Path, unmeasured: None, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(capsys, "new", "p", "--data", photos, "--out", "o")[0] == 0
    gone = f"{tmp_path / 'o/runs/p-edm'} does not exist yet: the network is that of o/p-edm.yaml"
    Path("o/p-edm.yaml").write_text(Path("o/p-edm.yaml").read_text().replace(": 32 ", ": 16 "))
    with pytest.warns(UserWarning, match=gone):
        status, out, error = call(capsys, "finetune", "o/p-d2o-f.yaml", "--dry-run")
    assert (status, "not ready, 1 to do:" in out) == (0, True), error
    assert "model_channels: 16" in out
    assert f"no model at {tmp_path / 'o/runs/p-edm'}: train one with `fasttrain pretrain`" in out
    with pytest.warns(UserWarning, match=gone):
        status, out, error = call(capsys, "plan", "o/p-d2o-f.yaml")
    assert (status, "generator " in out) == (0, True), error
    status, _, error = call(capsys, "plan", "o/p-edm.yaml")
    assert status == 2
    assert error == (
        "fasttrain: error: o/p-edm.yaml is for `fasttrain pretrain`: name a recipe for `fasttrain "
        "finetune`\n"
    )
    for words in (["finetune"], ["launch", "--gpus", "2", "--", "finetune"]):
        status, _, error = call(capsys, *words, "o/p-d2o-f.yaml")
        assert (status, error.count("\n"), "no model at" in error) == (2, 1, True)
    assert not Path("o/runs").exists()


def test_a_batch_that_does_not_fit_the_gpu_is_halved(
    capsys, photos: Path, tmp_path: Path, monkeypatch
) -> None:
    def small(settings: RunSettings, _: object) -> Pace:
        if (settings.micro_batch or settings.batch) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Pace(10.0, 0.5)

    def never(*_: object) -> Pace:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(measured, "measure", small)
    words = ("new", "p", "--data", photos, "--out", tmp_path)
    status, out, error = call(capsys, *words)
    assert status == 0, error
    for task in ("pretrain", "finetune"):
        assert (
            f"note: {task}: 64 images at once do not fit this GPU's memory: micro_batch 16" in out
        )
    settings = load_settings(str(tmp_path / "p-edm.yaml"), [], PretrainSettings)
    assert (settings.batch, settings.micro_batch) == (64, 16)
    assert "micro_batch: 16" in (tmp_path / "p-d2o-f.yaml").read_text()
    monkeypatch.setattr(measured, "measure", never)
    status, out, error = call(capsys, *words, "--force")
    assert status == 2
    assert "choose a smaller --resolution" in error
    assert "Traceback" not in error


def test_an_option_of_a_conversion_comes_with_its_command(
    capsys, photos: Path, tmp_path: Path
) -> None:
    rows = "".join(f"{p.relative_to(photos)},a,b\n" for p in photos.glob("*/*"))
    (photos / "metadata.csv").write_text(f"file_name,label,class\n{rows}")
    out = tmp_path / "o"
    status, _, error = call(capsys, "new", "p", "--data", photos, "--out", out)
    assert status == 2
    assert error == (
        f"fasttrain: error: {photos}/metadata.csv has several columns of labels, label, class: "
        "choose one with --label-column label. --label-column belongs to `fasttrain-data convert "
        f"{photos} {out}/data/p --resolution 32`; then: `fasttrain new p --data {out}/data/p "
        f"--out {out}`\n"
    )


def test_from_a_model(capsys, digits: Path, diffusion: Path, unmeasured: None, tmp_path) -> None:
    words = ("new", "ours", "--data", digits, "--init", diffusion, "--out", tmp_path / "o")
    status, _, error = call(capsys, *words)
    assert status == 0, error
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["ours-d2o-f.yaml"]
    recipe = tmp_path / "o/ours-d2o-f.yaml"
    assert f"#   fasttrain finetune {recipe}\n" in recipe.read_text()
    settings = load_settings(str(recipe), [], FinetuneSettings)
    assert settings.init == diffusion
    assert settings.network.img_resolution == 8
    assert settings.data.path == str(digits)


def test_what_does_not_fit_a_model_is_said_before_anything_is_made(
    capsys, digits: Path, diffusion: Path, photos: Path, unmeasured: None, tmp_path: Path
) -> None:
    out = tmp_path / "o"
    words = ("new", "ours", "--init", diffusion, "--out", out)
    status, _, error = call(capsys, *words, "--data", digits, "--resolution", "16")
    assert (status, f"--resolution 16: {diffusion} makes images of 8 pixels" in error) == (2, True)
    words = ("new", "ours", "--init", "fashion-mnist-edm", "--out", out)
    status, _, error = call(capsys, *words, "--data", digits)
    assert (status, "8x8, and fashion-mnist-edm makes images of 28 pixels" in error) == (2, True)
    status, _, error = call(capsys, "new", "ours", "--data", photos, "--out", photos)
    assert (status, "for the shards, is in" in error) == (2, True)
    assert not out.exists()


def test_ctrl_c_is_one_line(capsys, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(photos.parent)
    with monkeypatch.context() as patch:
        patch.setattr(command, "look_at", stop)
        status, _, error = call(capsys, "new", "photos", "--data", photos)
    assert status == 85
    assert error == "fasttrain: stopped; the same command goes on\n"
    paces = iter([Pace(10.0, 0.5)])
    with monkeypatch.context() as patch:  # while the second training is measured
        patch.setattr(measured, "measure", lambda *_: next(paces, None) or stop())
        status, _, error = call(capsys, "new", "photos", "--data", photos)
    assert (status, error) == (85, "fasttrain: stopped; the same command goes on\n")
    monkeypatch.setattr(measured, "measure", lambda *_: Pace(10.0, 0.5))
    status, _, error = call(capsys, "new", "photos", "--data", photos)
    assert status == 0, error


def test_the_pace_is_that_of_the_real_loops(quick: list[str], digits: Path) -> None:
    from tests.tiny import NETWORK

    words = [f"data.path={digits}", *NETWORK, "batch=16"]
    for settings in (
        load_settings("digits-edm", words, PretrainSettings),
        load_settings("digits-d2o-f", [*quick, "batch=16"], FinetuneSettings),
    ):
        pace = measure(settings, torch.device("cpu"))
        assert 0.1 < pace.images_per_second < 1e5
        assert 0.05 < pace.gigabytes < 50


@pytest.mark.parametrize("size", [8, 28, 32, 48, 64, 100, 128])
@pytest.mark.parametrize("gpu", [False, True])
def test_choices_are_networks(size: int, gpu: bool) -> None:
    from fasttrain.models.audit import audit
    from fasttrain.models.build import new_network
    from fasttrain.settings import NetworkSettings

    survey = Survey("x", 5000, 5000, (size,), (size, size), (size, size), 3, {"a": 2, "b": 3})
    proposed = resolution_for(survey, gpu).value
    assert proposed <= (64 if gpu else 32)
    assert proposed == (size if size <= (64 if gpu else 32) else (64 if gpu else 32))
    choices = choose(survey, resolution_for(survey, gpu), gpu=gpu)
    values = {name: choice.value for name, choice in choices.network.items()}
    settings = NetworkSettings.model_validate(values)
    with torch.device("meta"):
        assert audit(new_network("edm", settings)).total.parameters > 100_000
    levels = [settings.img_resolution >> i for i in range(len(settings.channel_mult))]
    assert set(settings.attn_resolutions) <= set(levels)
    assert yaml.safe_dump(values)
