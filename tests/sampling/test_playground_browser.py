"""The published page in headless Chromium, end to end: what a person does, and the images that they
see against Python's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fasttrain.models.load import load_model
from fasttrain.sampling.generate import Tile, draw
from fasttrain.sampling.sampler import Sampler
from tests.browser import Browser

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(Browser.program() is None, reason="no Chromium: the page is not opened"),
]

PAGE = Path(__file__).parents[2] / "docs" / "playground" / "index.html"
DRAWN = "slots.every(slot => slot.shown === slot.wanted)"
SMALL, WIDE = (390, 844), (1280, 900)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser.start() as browser:
        browser.open(PAGE.as_uri(), *WIDE)
        browser.wait("document.body.dataset.state === 'ready'")
        browser.wait(DRAWN)
        yield browser


def expected(first: int, *, second: int | None = None, at: float = 0.0, label: int) -> Tensor:
    network, info = load_model(Path("fashion-mnist"))
    tile = Tile("", first, first if second is None else second, at, label)
    return next(draw(Sampler.of(info), network, [tile], batch=1)).flatten()


def shown(browser: Browser, slot: str) -> Tensor:
    return torch.tensor(browser.run(f"Array.from({slot}.image)"))


def text(browser: Browser, name: str) -> str:
    return str(browser.run(f"$('{name}').textContent"))


def test_images_are_those_of_python(browser: Browser) -> None:
    for seed in (0, 13):
        image = shown(browser, f"tiles[{seed}].slot")
        assert (image - expected(seed, label=seed % 10)).abs().max() <= 1e-3
    middle = shown(browser, "strip[3]")
    assert (middle - expected(0, second=1, at=3 / 9, label=0)).abs().max() <= 1e-3
    pixel = browser.run(
        "Array.from($('grid').querySelector('canvas').getContext('2d').getImageData(9, 14, 1, 1)"
        ".data)"
    )
    grey = float((expected(0, label=0)[14 * 28 + 9] + 1) * 127.5)
    assert pixel[:3] == [pixel[0]] * 3
    assert abs(pixel[0] - grey) <= 0.6


def test_a_click_chooses_and_a_class_by_name(browser: Browser) -> None:
    browser.click(browser.middle("#grid button:nth-child(9)"))
    assert (text(browser, "seed-shown"), text(browser, "class-shown")) == ("8", "Bag")
    assert text(browser, "command") == "fasttrain sample fashion-mnist --seeds 8 --class Bag"
    browser.run("$('class').value = '9'; $('class').dispatchEvent(new Event('change'))")
    browser.wait(DRAWN)
    assert text(browser, "command").endswith("--seeds 8 --class 'Ankle boot'")
    image = shown(browser, "tiles[8].slot")
    assert (image - expected(8, label=9)).abs().max() <= 1e-3
    assert browser.run("location.hash") == "#seed=0&chosen=8&class=9"


def test_a_drag_moves_every_image_and_chooses_none(browser: Browser) -> None:
    before, chosen = shown(browser, "tiles[2].slot"), text(browser, "seed-shown")
    x, y = browser.middle("#grid button:nth-child(3)")
    browser.drag((x, y), (x + 90, y - 40))
    right, up = browser.run("[state.right, state.up]")
    assert right > 0.2
    assert 0 < up < right
    browser.wait(DRAWN)
    assert (shown(browser, "tiles[2].slot") - before).abs().max() > 0.1
    assert text(browser, "seed-shown") == chosen
    browser.click(browser.middle("#centre"))
    browser.wait(DRAWN)
    assert torch.equal(shown(browser, "tiles[2].slot"), before)


def test_keys_do_the_same(browser: Browser) -> None:
    browser.run("$('pad').focus()")
    browser.press("ArrowRight")
    browser.press("ArrowUp")
    assert browser.run("[state.right, state.up]") == [0.05, 0.05]
    browser.press("Home")
    assert browser.run("[state.right, state.up]") == [0, 0]
    browser.run("tiles[0].button.focus(); choose(0)")
    for key in ("ArrowRight", "ArrowDown", "a", "ArrowRight", "b"):
        browser.press(key)
    assert browser.run("document.activeElement.getAttribute('aria-label')") == "seed 8, Ankle boot"
    browser.wait(DRAWN)
    assert "--interpolate 7,8 --class 'Ankle boot'" in text(browser, "strip-command")
    image = shown(browser, "strip[6]")
    assert (image - expected(7, second=8, at=6 / 9, label=9)).abs().max() <= 1e-3


def test_one_step_beside_the_diffusion_model(browser: Browser) -> None:
    browser.click(browser.middle("#compare"))
    browser.wait("$('ratio').textContent !== '…'")
    network, info = load_model(Path("fashion-mnist-edm"))
    tile = Tile("", 8, 8, label=9)
    heun = next(draw(Sampler.of(info), network, [tile], batch=1)).flatten()
    many = browser.run("Array.from($('many').getContext('2d').getImageData(0, 0, 28, 28).data)")
    grey = ((heun + 1) * 127.5).clamp(0, 255)
    assert (torch.tensor(many[::4]) - grey).abs().max() <= 0.6
    assert "ms" in text(browser, "once-time")
    assert float(text(browser, "ratio").split()[0]) > 10


def names(browser: Browser) -> list[dict[str, Any]]:
    tree = browser.call("Accessibility.getFullAXTree")["nodes"]
    return [node for node in tree if not node["ignored"]]


def test_everything_that_is_used_has_a_name(browser: Browser) -> None:
    used = {"button", "slider", "combobox", "spinbutton", "image"}
    nodes = [node for node in names(browser) if node["role"]["value"] in used]
    assert len(nodes) > 40
    assert not [node for node in nodes if not node["name"]["value"]]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [SMALL, WIDE])
def test_it_fits_and_can_be_read(browser: Browser, size: tuple[int, int], dark: bool) -> None:
    """No page to scroll sideways, no finger's target under 24 pixels, contrast 4.5 of the text;
    PLAYGROUND_PICTURES=DIR keeps the screenshots."""
    browser.size(*size, dark=dark)
    assert browser.run("document.documentElement.scrollWidth") <= size[0]
    least = browser.run(
        "Math.min(...[...document.querySelectorAll('button, select, input')].filter(e => "
        "e.offsetParent).map(e => Math.min(e.offsetWidth, e.offsetHeight)))"
    )
    assert least >= 24
    for name in ("--ink", "--soft"):
        ink, card = (colour(browser, each) for each in (name, "--card"))
        low, high = sorted((brightness(ink), brightness(card)))
        assert (high + 0.05) / (low + 0.05) >= 4.5
    if folder := os.environ.get("PLAYGROUND_PICTURES"):
        browser.picture(Path(folder) / f"{size[0]}-{'dark' if dark else 'light'}.png")


def colour(browser: Browser, name: str) -> list[float]:
    text = browser.run(f"getComputedStyle(document.documentElement).getPropertyValue('{name}')")
    digits = text.strip().lstrip("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    return [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]


def brightness(rgb: list[float]) -> float:
    """Relative luminance (WCAG 2)."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return sum(k * c for k, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_nothing_was_said_to_the_console_and_nothing_asked_elsewhere(browser: Browser) -> None:
    assert browser.messages == []
    assert {url.split(":")[0] for url in browser.requests} <= {"file", "blob", "data"}
