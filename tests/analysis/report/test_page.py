"""The report of a fabricated run: the right numbers and pictures, and nothing is loaded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from fasttrain.analysis.report import page as report
from fasttrain.analysis.report.grids import Layout, real_images
from fasttrain.models.audit import audit
from fasttrain.models.build import new_network
from fasttrain.sampling.draws import sample_latents
from fasttrain.sampling.pictures import to_uint8
from fasttrain.sampling.solvers import heun_sampler, one_step
from fasttrain.settings import NetworkSettings
from tests.analysis.report.support import FD, new_audited


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
