"""EDM's augmentation: what the labels say is what was done, by the definition and bit by bit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fasttrain.settings.base import AUGMENT_DIM
from fasttrain.training.edm_augment import TAPS, edm_augment, warped

SIZE = 24


def blob(x: Tensor, y: Tensor) -> Tensor:
    """A smooth image of which no two turns or mirrors are alike; x and y in pixels."""
    x, y = (x - 14) / 4, (y - 9) / 4
    return torch.exp(-(x**2) - (y - 0.3 * x) ** 2) + 0.5 * torch.exp(-((x + 1) ** 2) - (y - 2) ** 2)


def blobs(count: int) -> Tensor:
    row, column = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    return blob(column, row).expand(count, 2, SIZE, SIZE).contiguous()


def by_definition(label: list[float], sign: int) -> Tensor:
    """The blob as its labels describe it: each pixel asks where it came from, one transformation
    after the other, and the blob's formula there. Independent of any filter or matrix.

    (n cos r, n sin r) does not tell n along r from -n along r + pi, which is the same line, so not
    wider from narrower along it: `sign` does."""
    mirrored, upended, scale, cos, sin, stretch_x, stretch_y, move_x, move_y = label
    middle = (SIZE - 1) / 2
    row, column = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    z = torch.complex(column - middle, middle - row)  # y up, as angles are drawn
    z = z - SIZE / 8 * complex(move_x, -move_y)
    amount = sign * math.hypot(stretch_x, stretch_y)
    turn = torch.exp(1j * torch.tensor(math.atan2(stretch_y, stretch_x)))
    z = z * turn.conj()  # along the axis: turned back on to x, and its inverse across
    z = torch.complex(z.real / 2 ** (0.2 * amount), z.imag * 2 ** (0.2 * amount)) * turn
    z = z / torch.exp(1j * torch.tensor(math.atan2(sin, cos + 1))) / 2 ** (0.2 * scale)
    x, y = z.real + middle, middle - z.imag
    period = 2 * (SIZE - 1)  # mirrored borders
    x, y = ((SIZE - 1) - ((SIZE - 1) - v.remainder(period)).abs() for v in (x, y))
    x = SIZE - 1 - x if mirrored else x
    y = SIZE - 1 - y if upended else y
    return blob(x, y)


def test_the_labels_say_what_was_done() -> None:
    images, labels = edm_augment(blobs(64), 0.7, 3, torch.arange(64))
    assert labels.shape == (64, AUGMENT_DIM)
    for made, label in zip(images, labels.tolist(), strict=True):
        errors = [float((made[0] - by_definition(label, sign)).abs().max()) for sign in (1, -1)]
        assert min(errors) < 0.03, (label, errors)
    assert (labels != 0).any(0).all()


def test_probability_zero_is_the_image_itself() -> None:
    x = torch.randn(16, 3, 8, 8)
    images, labels = edm_augment(x, 0.0, 3, torch.arange(16))
    assert torch.equal(images, x)
    assert not labels.any()


def test_mirrors_keep_every_bit() -> None:
    x = torch.randn(2000, 1, 8, 8)
    images, labels = edm_augment(x, 0.3, 5, torch.arange(2000))
    unmoved = ~labels[:, 2:].any(1)
    seen = set()
    for made, image, label in zip(images[unmoved], x[unmoved], labels[unmoved], strict=True):
        dims = [dim for dim, flag in ((2, label[0]), (1, label[1])) if flag]
        assert torch.equal(made, image.flip(dims))
        seen.add(tuple(dims))
    assert seen == {(), (1,), (2,), (2, 1)}


def test_how_often_and_how_much() -> None:
    p, count = 0.12, 20_000
    _, labels = edm_augment(torch.zeros(count, 1, 4, 4), p, 7, torch.arange(count))
    often = (labels != 0).float().mean(0)
    expected = torch.tensor([0.5, p / 2, p, p, p, p, p / 2, p, p])
    assert (often - expected).abs().max() < 0.012
    for column in (2, 7, 8):
        values = labels[labels[:, column] != 0, column]
        assert values.std() == pytest.approx(1, abs=0.06)
        assert values.mean() == pytest.approx(0, abs=0.08)
    turned = labels[:, 4] != 0
    angles = torch.atan2(labels[turned, 4], labels[turned, 3] + 1)
    assert angles.std() == pytest.approx(math.pi / math.sqrt(3), abs=0.06)
    sizes = labels[:, 5:7].norm(dim=1)
    assert sizes[sizes > 0].square().mean() == pytest.approx(1, abs=0.1)


def test_a_draw_depends_on_seed_and_index_alone() -> None:
    x, index = torch.randn(12, 1, 8, 8), torch.arange(100, 112)
    whole, labels = edm_augment(x, 0.5, 5, index)
    parts = [edm_augment(x[k : k + 4], 0.5, 5, index[k : k + 4]) for k in (0, 4, 8)]
    assert torch.equal(torch.cat([part[1] for part in parts]), labels)
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), whole, atol=1e-6, rtol=0)
    assert not torch.equal(edm_augment(x, 0.5, 6, index)[1], labels)
    assert not torch.equal(edm_augment(x, 0.5, 5, index + 1)[1][:-1], labels[:-1])


def test_whole_pixels_and_back_again() -> None:
    """The filter up and down cancels: no map, and a move by whole pixels, only round."""
    x, none = torch.randn(3, 2, 16, 12), torch.zeros(3)
    still = warped(x, none, none, none, none, torch.zeros(3, 2))
    torch.testing.assert_close(still, x, atol=1e-5, rtol=0)
    moved = warped(x, none, none, none, none, torch.tensor([[2.0, -3.0]]).expand(3, 2))
    torch.testing.assert_close(moved[:, :, :-3, 2:], x[:, :, 3:, :-2], atol=1e-5, rtol=0)
    # Mirrored borders: column -1 is column 1.
    torch.testing.assert_close(moved[:, :, :-3, :2], x[:, :, 3:, 1:3].flip(3), atol=1e-5, rtol=0)
    far = warped(x, none, none, none, none, torch.tensor([[220.0, 0.0]]).expand(3, 2))
    torch.testing.assert_close(far, x, atol=1e-5, rtol=0)  # ten periods of 22 pixels


def test_each_map_undoes_itself() -> None:
    """Scaling and stretching by the inverse, turning back."""
    x, amount = blobs(4), torch.tensor([0.8, -0.6, 1.2, -1.0])
    none, still = torch.zeros(4), torch.zeros(4, 2)
    for there, back in (
        ((amount, none, none, none), (-amount, none, none, none)),
        ((none, amount, none, none), (none, -amount, none, none)),
        ((none, none, amount, amount), (none, none, -amount, amount)),
    ):
        inner = warped(warped(x, *there, still), *back, still)[:, :, 6:-6, 6:-6]
        assert (inner - x[:, :, 6:-6, 6:-6]).abs().max() < 0.05
        assert (warped(x, *there, still) - x).abs().max() > 0.1


def test_the_filter_is_orthogonal_with_six_vanishing_moments() -> None:
    taps = torch.tensor(TAPS, dtype=torch.float64)
    for shift in range(0, len(TAPS), 2):
        product = float((taps[shift:] * taps[: len(TAPS) - shift]).sum())
        assert product == pytest.approx(float(shift == 0), abs=1e-10)
    places = torch.arange(len(TAPS), dtype=torch.float64)
    signs = (-1.0) ** places
    for moment in range(6):
        assert float((signs * taps * places**moment).sum()) == pytest.approx(0, abs=1e-5)
