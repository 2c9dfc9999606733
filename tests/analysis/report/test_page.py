"""The report of a fabricated run: the right numbers and pictures, nothing loaded, all escaped."""

from __future__ import annotations

import base64
import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from fasttrain.analysis.report import page as report
from fasttrain.analysis.report.grids import Layout, real_images
from fasttrain.analysis.report.page import duration, number, write_report
from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.saved import keep_base
from fasttrain.evaluation.protocol import protocol_of
from fasttrain.models.audit import audit
from fasttrain.models.build import new_network
from fasttrain.models.freezing import apply_freezing
from fasttrain.sampling.draws import sample_latents
from fasttrain.sampling.pictures import save_grid, to_uint8
from fasttrain.sampling.solvers import heun_sampler, one_step
from fasttrain.settings import FinetuneSettings, NetworkSettings, PretrainSettings, RunSettings
from fasttrain.settings.recipes import load_settings, to_yaml
from fasttrain.system.errors import UserError
from fasttrain_data import convert

SMALL = ["network.model_channels=16", "network.num_blocks=1"]
FD = {"real_floor": 1.93, "teacher_18": 22.9, "one_step_before": 266.2, "one_step_after": 24.5}


class Page(HTMLParser):
    """Elements, attributes and the text under each id."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[tuple[str, str | None]] = []
        self.text: dict[str | None, str] = {}
        self.images: dict[str | None, list[Image.Image]] = {}
        self.styles = ""
        self.cells: dict[str | None, list[str]] = {}
        self.row: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        if tag == "img":
            head, _, data = (values["src"] or "").partition(",")
            assert head == "data:image/png;base64"
            picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
            picture.load()
            assert (values["width"], values["height"]) == tuple(map(str, picture.size))
            assert values["alt"]
            for name in {name for _, name in self.open}:
                self.images.setdefault(name, []).append(picture)
        if tag == "tr":
            self.row = self.cells.setdefault(values.get("data-row"), [])
        if tag == "td":
            self.row.append("")
        if tag not in ("meta", "img"):
            self.open.append((tag, values.get("id")))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for name in {name for _, name in self.open}:
            self.text[name] = self.text.get(name, "") + data
        if any(tag == "td" for tag, _ in self.open):
            self.row[-1] += data
        if self.open and self.open[-1][0] == "style":
            self.styles += data


def fabricate(settings: RunSettings, seed: int, base: Any = None) -> Any:
    """A run directory of an untrained network whose average differs from its weights, begun with
    another network `base`. Returns the network that holds the average."""
    kind = "generator" if settings.task == "finetune" else "network"
    precond = "one_step" if settings.task == "finetune" else "edm"
    torch.manual_seed(seed)
    network = new_network(precond, settings.network)
    with torch.no_grad():
        for parameter in network.parameters():  # the last layer starts at almost nothing
            parameter.add_(0.1 * torch.randn_like(parameter))
    if isinstance(settings, FinetuneSettings):
        apply_freezing(network.model, settings.freeze)
    weights = {f"module/{name}": value.clone() for name, value in network.state_dict().items()}
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.mul_(1.5)
    settings.run.mkdir(parents=True)
    (settings.run / "config.yaml").write_text(to_yaml(settings))
    state = {"images": settings.images, "seconds": 92.4, "evaluation": None}
    if base is not None:
        digest = keep_base(settings.run, base.state_dict())
        state["base"] = {"sha256": digest, "frozen": "float32"}
    tensors = {kind: weights, "ema": trained}
    checkpoint.save(settings.run / "checkpoints", settings.images, tensors, state)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A pre-training run and a fine-tuning run of it, with all that such runs leave."""
    root = tmp_path_factory.mktemp("report")
    data, diffusion, tuned = root / "data", root / "digits-edm", root / "digits-d2o-f"
    convert("digits", data)
    common = [f"data.path={data}", *SMALL]
    pretrained = load_settings("digits-edm", [*common, f"run={diffusion}"], PretrainSettings)
    settings = load_settings(
        "digits-d2o-f",
        [*common, f"run={tuned}", f"init={diffusion}", "images=6016"],
        FinetuneSettings,
    )
    teacher = fabricate(pretrained, 1)
    generator = fabricate(settings, 2, base=teacher)
    shutil.rmtree(diffusion)
    fabricate(pretrained, 3)  # `init` has trained on since
    with (tuned / "stats.jsonl").open("w") as file:
        for images in range(320, 6017, 320):
            line = {"images": images, "seconds": images / 64, "logits/real": 0.5}
            line |= {"loss/generator": 2.0, "loss/discriminator": 1.0, "logits/fake": -images / 1e4}
            line |= {"loss/r1": 3.0, "fd": 100.0, "fd_full": 1.0} if images % 1600 == 0 else {}
            file.write(json.dumps(line) + "\n")
        file.write(json.dumps({"images": 99999, "loss/generator": 5e7}) + "\n")  # no checkpoint yet
    (tuned / "audit.json").write_text(json.dumps(audit(new_audited(settings)).to_dict()))
    evaluation = {
        "fd": FD,
        "fd_full": {row: 2 * value for row, value in FD.items()},
        "kd": {row: value / 1000 for row, value in FD.items()},
        "protocol": {"extractor": "lite2", "images": 898, "checkpoint": "latest"},
        "seconds": 41.2,
    }
    (tuned / "evaluation.json").write_text(json.dumps(evaluation))
    for images in range(0, 6017, 752):
        save_grid(torch.rand(4, 1, 8, 8) * 2 - 1, tuned / "samples" / f"{images:010d}.png")
    (tuned / "samples" / "0000000752.png").write_bytes(b"damaged")
    page = Page(write_report(tuned).read_text(encoding="utf-8"))
    return {
        "tuned": tuned,
        "diffusion": diffusion,
        "settings": settings,
        "generator": generator,
        "teacher": teacher,
        "page": page,
    }


def new_audited(settings: FinetuneSettings) -> Any:
    network = new_network("one_step", settings.network).model
    apply_freezing(network, settings.freeze)
    return network


@pytest.fixture
def tuned(made: dict[str, Any], tmp_path: Path) -> Path:
    """A copy of the fine-tuning run, to be spoilt."""
    return Path(shutil.copytree(made["tuned"], tmp_path / "run"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what has nothing to do with the pictures."""
    monkeypatch.setattr(report, "compare", lambda saved, trust_urls: [])


def page_of(run: Path) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


def test_headline_and_facts(made: dict[str, Any]) -> None:
    text = made["page"].text
    assert text["verdict"] == "266→24.5"
    head = " ".join(text[None].split())
    assert "1.07 times the distance of the diffusion model" in head
    assert "D2O-F, level 1" in head
    assert "6,016" in head
    assert "1 min 32 s" in head
    assert "65.1 images/s" in head
    counts = audit(new_audited(made["settings"]))
    assert f"{100 * counts.trainable_fraction:.1f} %" in head
    assert f"{counts.total.trainable:,} of {counts.total.parameters:,} parameters" in head


def test_dot_plot_is_in_order_and_logarithmic(made: dict[str, Any]) -> None:
    dots = {row.label: row.left for row in report._dots(FD, made["settings"])}
    assert list(dots) == [
        "other real images",
        "diffusion model, 18 steps",
        "one step, after",
        "one step, before",
    ]
    floor, teacher, _, before = dots.values()
    ratio = np.log(22.9 / 1.93) / np.log(266.2 / 1.93)
    assert (teacher - floor) / (before - floor) == pytest.approx(ratio, abs=2e-3)
    drawn = [a["style"] for tag, a in made["page"].tags if tag == "u" and "left" in a["style"]]
    assert [style.split(";")[0] for style in drawn] == [f"left:{left}%" for left in dots.values()]


def tiles(picture: Image.Image, columns: int = 5) -> np.ndarray:
    """[N, 8, 8] uint8: the images of a grid of 8x8 ones, by its geometry, pixels made small."""
    side, gap = 96, 6
    pixels = np.asarray(picture)
    assert pixels.shape[2] == 2  # grey and opacity
    found = []
    for top in range(0, pixels.shape[0], side + gap):
        for left in range(0, pixels.shape[1], side + gap):
            tile = pixels[top : top + side, left : left + side]
            assert (tile[..., 1] == 255).all()
            small = tile[::12, ::12, 0]
            assert (np.kron(small, np.ones((12, 12), np.uint8)) == tile[..., 0]).all()
            found.append(small)
    assert len(found) % columns == 0
    return np.stack(found)


@pytest.mark.parametrize("name", ["one_step_before", "teacher_18", "one_step_after"])
def test_grids_are_the_images_of_their_seeds_and_classes(name: str, made: dict[str, Any]) -> None:
    (picture,) = made["page"].images[name]
    shown = tiles(picture)
    assert len(shown) == 50
    assert len(np.unique(shown.reshape(50, -1), axis=0)) == 50
    for place in (0, 1, 7, 23, 49):
        label, column = divmod(place, 5)
        latents = sample_latents(torch.tensor([label + 10 * column]), (1, 8, 8))
        classes = torch.eye(10)[label : label + 1]
        with torch.no_grad():
            if name == "teacher_18":
                image = heun_sampler(made["teacher"], latents, classes, num_steps=18)
            elif name == "one_step_after":
                image = one_step(made["generator"], latents, classes)
            else:
                start = new_network("one_step", made["settings"].network)
                start.load_state_dict(made["teacher"].state_dict())
                image = one_step(start.eval(), latents, classes)
        # Another batch size may round the last bit of a float otherwise.
        expected = to_uint8(image)[0, 0].numpy().astype(int)
        assert np.abs(shown[place].astype(int) - expected).max() <= 1


def test_real_images_have_the_class_of_their_row(made: dict[str, Any]) -> None:
    shown = tiles(made["page"].images["real_floor"][0])
    digits = load_digits()
    known: dict[bytes, set[int]] = {}
    for image, label in zip(digits.images, digits.target, strict=True):
        pixels = to_uint8(torch.from_numpy(image).float() / 8 - 1).numpy()
        known.setdefault(pixels.tobytes(), set()).add(int(label))
    for place, image in enumerate(shown):
        assert place // 5 in known[image.tobytes()]
    assert len({image.tobytes() for image in shown}) == 50


def test_layouts() -> None:
    def of(resolution: int, label_dim: int) -> Layout:
        return Layout.of(NetworkSettings(img_resolution=resolution, label_dim=label_dim))

    assert of(8, 10).seeds[:7] == [0, 10, 20, 30, 40, 1, 11]
    assert of(32, 0).seeds == list(range(40))
    assert of(32, 1000).seeds[:6] == [0, 1000, 2000, 3000, 4000, 1]
    assert of(32, 2).per_class == 20
    assert len(of(256, 1000).seeds) == 16


def test_a_class_with_too_few_images_is_filled_with_white(made: dict[str, Any]) -> None:
    images = real_images(made["settings"], Layout(10, 190, 5, 10)).view(10, 190, 1, 8, 8)
    counts = np.bincount(load_digits().target)
    for label, count in enumerate(counts):
        assert (images[label, count:] == 1).all()
        assert (images[label, :count].amin(dim=(1, 2, 3)) == -1).all()


def test_curves_and_strip(made: dict[str, Any]) -> None:
    page = made["page"]
    assert "one step: 266 to 100 at 4.8k images" in page.text["chart-fd"]
    assert "diffusion model, 18 steps: 22.9" in page.text["chart-fd"]
    assert "other real images: 1.93" in page.text["chart-fd"]
    assert "generator: 2 to 2" in page.text["chart-losses"]  # not the 5e7 after the checkpoint
    assert "discriminator: 1 to 1" in page.text["chart-losses"]
    assert "fake: -0.032 to -0.576" in page.text["chart-logits"]
    assert "r1: 3 to 3" in page.text["chart-r1"]
    assert "images/s: 64 to 64" in page.text["chart-speed"]
    assert "chart-denoising" not in page.text
    strip = page.text["strip"].split(" images")
    assert strip[0].strip() == "0"
    assert strip[-2].strip() == "6,016"
    assert 4 <= len(page.images["strip"]) <= 6


def test_tables(made: dict[str, Any]) -> None:
    text = " ".join(made["page"].text["evaluation"].split())
    assert made["page"].cells["one_step_after"] == [
        "one step, after fine-tuning",
        "24.5",
        "49",
        "0.0245",
    ]
    assert "It took 41 s. protocol: extractor lite2, images 898, checkpoint latest" in text
    assert [row for row in made["page"].cells if row] == list(FD)
    audited = made["page"].text["audit"]
    for row in audit(new_audited(made["settings"])).rows:
        assert row.type in audited
        assert f"{row.parameters:,}" in audited
    assert "half_life: 2000" in made["page"].text["settings"]
    assert torch.__version__ in made["page"].text["machine"]


def test_nothing_is_loaded(made: dict[str, Any]) -> None:
    page = made["page"]
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "base", "form"}
    for _, attributes in page.tags:
        assert (attributes.get("src") or "data:").startswith(
            "data:image/png"
        ) or "src" not in attributes
        assert not {"href", "srcset", "xlink:href", "onload", "onerror"} & set(attributes)
    assert "url(" not in page.styles
    assert "@import" not in page.styles
    policy = next(a["content"] for tag, a in page.tags if "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    viewport = next(a for tag, a in page.tags if a.get("name") == "viewport")
    assert viewport["content"] == "width=device-width, initial-scale=1"
    assert page.open == []
    assert not list(made["tuned"].glob("*.tmp"))


@pytest.mark.usefixtures("quick")
def test_hostile_names_are_text(tuned: Path) -> None:
    evil = "\"'><script>alert(1)<!--</pre>&amp;"
    run = tuned.rename(tuned.parent / "<b onclick=alert(1)>\"'&lt;")
    settings = load_settings(
        str(run / "config.yaml"),
        [f"engine.deepspeed={{comms_logger: {json.dumps(evil)}}}"],
        FinetuneSettings,
    )
    (run / "config.yaml").write_text(to_yaml(settings))
    evaluation = json.loads((run / "evaluation.json").read_text())
    evaluation["fd"][evil] = 3.0
    evaluation["protocol"][evil] = evil
    evaluation["kd"]["real_floor"] = float("nan")
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    page = page_of(run)
    assert not {tag for tag, _ in page.tags} & {"script", "b onclick=alert(1)"}
    assert not any("onclick" in attributes for _, attributes in page.tags)
    assert run.name in page.text[None]
    assert page.text["evaluation"].count(evil) == 3
    assert "alert(1)" in page.text["settings"]


@pytest.mark.usefixtures("quick")
def test_a_two_step_generator_is_called_one(tuned: Path) -> None:
    config = (tuned / "config.yaml").read_text()
    (tuned / "config.yaml").write_text(config.replace("sigma_mid: null", "sigma_mid: 0.8"))
    evaluation = json.loads((tuned / "evaluation.json").read_text())
    evaluation["recall"] = dict.fromkeys(FD, 0.625)
    (tuned / "evaluation.json").write_text(json.dumps(evaluation))
    page = page_of(tuned)
    head = " ".join(page.text[None].split())
    assert "(fd) of two-step images" in head
    assert "Two evaluations now have 1.07 times" in head
    assert "two-step generator (D2O-F" in head
    assert "two steps, after" in head
    assert "two steps: " in page.text["chart-fd"]
    for row, when in (("one_step_before", "before"), ("one_step_after", "after")):
        assert page.cells[row][0] == f"two steps, {when} fine-tuning"
        assert page.cells[row][-1] == "0.625"
    assert "one step" not in head


@pytest.mark.usefixtures("quick")
def test_without_numbers_the_page_says_how_to_get_them(tuned: Path) -> None:
    (tuned / "evaluation.json").unlink()
    page = page_of(tuned)
    assert "verdict" not in page.text
    assert f"fasttrain evaluate {tuned}" in page.text["no-evaluation"]
    assert f"fasttrain evaluate {tuned}" in page.text["evaluation"]
    assert "one step: 100 to 100" in page.text["chart-fd"]


@pytest.mark.usefixtures("quick")
def test_the_curve_is_that_of_the_metric_asked_for(tuned: Path) -> None:
    config = (tuned / "config.yaml").read_text()
    (tuned / "config.yaml").write_text(config.replace("metric: fd", "metric: precision"))
    lines = [json.loads(line) for line in (tuned / "stats.jsonl").read_text().splitlines()]
    for line in lines:
        if "fd" in line:
            line["precision"] = line["images"] / 10_000
    (tuned / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(tuned)
    assert "Precision (higher is better)" in page.text["chart-precision"]
    assert "one step: 0.16 to 0.48 at 4.8k images" in page.text["chart-precision"]
    assert "real images" not in page.text["chart-precision"]  # a level that is not known
    assert "chart-fd" not in page.text


@pytest.mark.usefixtures("quick")
def test_results_of_other_protocols_stand_under_the_table_with_them(tuned: Path) -> None:
    assert "measured" not in page_of(tuned).text
    evil = "<b onclick=alert(1)>"
    extractor = {"extractor": "inception", "weights": "6726825d0000", "rounding": "uint8"}
    reference = {"data": evil, "images": 9, "size": 8, "resized": False, "content": "abc"}
    model = {"name": evil, "weights": "0", "images_seen": 6016, "sampler": "one step"}
    result = {
        "metrics": {"fd": {"value": 3.25, "low": 3.0, "high": 3.5}},
        "protocol": protocol_of(extractor, reference, images=50_000, components=None),
        "model": model | {"seeds": "0-49999", "classes": None},
    }
    (tuned / "evaluation-inception-0.json").write_text(json.dumps(result))
    (tuned / "evaluation-spoilt.json").write_text("{")
    page = page_of(tuned)
    for part in ("3.25   3 to 3.5", "weights 6726825d0000", "50,000 images", evil):
        assert part in page.text["measured"]
    assert not any("onclick" in attributes for _, attributes in page.tags)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("content", ["{", "[]", '{"fd": 3}', '{"fd": {"a": "low"}}', '{"fd": {}}'])
def test_unreadable_numbers(content: str, tuned: Path) -> None:
    (tuned / "evaluation.json").write_text(content)
    page = page_of(tuned)
    assert "evaluation.json cannot be read." in page.text[None]
    assert "verdict" not in page.text


@pytest.mark.usefixtures("quick")
def test_numbers_of_another_checkpoint_are_told_apart(tuned: Path) -> None:
    evaluation = json.loads((tuned / "evaluation.json").read_text())
    evaluation["protocol"]["images_seen"] = 4096
    (tuned / "evaluation.json").write_text(json.dumps(evaluation))
    assert "of the checkpoint at 4,096 images, the page is of 6,016" in page_of(tuned).text[None]


@pytest.mark.usefixtures("quick")
def test_nothing_measured_and_no_audit(tuned: Path, made: dict[str, Any]) -> None:
    for name in ("stats.jsonl", "audit.json", "evaluation.json"):
        (tuned / name).unlink()
    shutil.rmtree(tuned / "samples")
    page = page_of(tuned)
    assert "No curves yet" in page.text["curves"]
    assert "samples/ has none" in page.text["curves"]
    counts = audit(new_audited(made["settings"])).total
    assert f"{counts.trainable:,}" in page.text["audit"]


def test_base_model_and_data_have_gone(tuned: Path, made: dict[str, Any]) -> None:
    settings = load_settings(
        str(tuned / "config.yaml"),
        ["init=/nowhere/edm", "data.path=/nowhere/data"],
        FinetuneSettings,
    )
    (tuned / "config.yaml").write_text(to_yaml(settings))
    page = page_of(tuned)
    assert "Left out: no shards at /nowhere/data" in page.text["real_floor"]
    for name in ("teacher_18", "one_step_before", "one_step_after"):  # of what the run has kept
        shown, before = page.images[name][0], made["page"].images[name][0]
        assert shown.tobytes() == before.tobytes()
    (tuned / "base.safetensors").unlink()
    page = page_of(tuned)
    for name in ("teacher_18", "one_step_before", "one_step_after"):
        assert "base.safetensors is missing or damaged" in page.text[name]
        assert name not in page.images


def test_pretraining_run(made: dict[str, Any]) -> None:
    run = made["diffusion"]
    line = {"images": 2560, "loss/denoising": 0.5, "seconds": 2.0}
    (run / "stats.jsonl").write_text(json.dumps(line) + "\n")
    page = page_of(run)
    assert "A diffusion model" in page.text[None]
    assert "denoising: 0.5 to 0.5 at 2.56k images" in page.text["chart-denoising"]
    assert "100.0 %" in page.text["audit"]
    assert not {"one_step_before", "one_step_after"} & set(page.images)
    (own,), (teacher,) = page.images["teacher_18"], made["page"].images["teacher_18"]
    assert own.tobytes() != teacher.tobytes()  # it has trained on since the fine-tuning began


def test_no_run_and_no_checkpoint(tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run directory: it has no config\.yaml"):
        write_report(tmp_path)
    shutil.rmtree(tuned / "checkpoints")
    with pytest.raises(UserError, match="has no intact checkpoint") as error:
        write_report(tuned)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.6, "1 min 0 s"),
        (92.4, "1 min 32 s"),
        (11100, "3 h 5 min"),
        (2e5, "2 d 7 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(266.2, "266"), (0.00123, "0.00123"), (999.7, "1,000"), (12345.6, "12,346")]
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text
