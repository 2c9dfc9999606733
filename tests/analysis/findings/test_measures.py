"""Measuring functions on constructed cases with known answers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fasttrain.analysis.findings.budget import compared
from fasttrain.analysis.findings.curves import apart, first_below, spread
from fasttrain.analysis.findings.freezing import verdict as freezing_verdict
from fasttrain.analysis.findings.frequency import block_frequencies, moved
from fasttrain.analysis.findings.landscape import (
    along_line,
    barrier,
    interpolate,
    paired_distance,
    rank_correlation,
)
from fasttrain.analysis.findings.minima import closeness
from fasttrain.analysis.findings.objectives import at_seconds
from fasttrain.analysis.findings.objectives import verdict as objectives_verdict
from fasttrain.analysis.findings.pretraining import verdict as pretraining_verdict
from fasttrain.analysis.findings.spectra import block_spectra, mean_frequency, radial_power
from fasttrain.models.build import new_network
from fasttrain.settings import NetworkSettings
from tests.models.networks.test_families import BASE, NETWORKS, SMALL


def wave(cycles: int, size: int = 16, *, down: bool = False) -> Tensor:
    """cos(2 pi k x / size), one image."""
    line = torch.cos(2 * math.pi * cycles * torch.arange(size) / size)
    image = line[:, None].expand(size, size) if down else line[None].expand(size, size)
    return image[None, None]


@pytest.mark.parametrize("cycles", [0, 1, 3, 8])
def test_a_wave_has_its_power_at_its_frequency(cycles: int) -> None:
    power = radial_power(3 * wave(cycles))
    expected = torch.zeros_like(power)
    expected[cycles] = 9.0 if cycles in (0, 8) else 4.5  # constant and Nyquist: cos^2 = 1
    torch.testing.assert_close(power, expected)


def test_the_sum_of_a_spectrum_is_the_mean_square() -> None:
    maps = torch.randn(3, 2, 12, 12)
    assert radial_power(maps).sum().item() == pytest.approx(maps.square().mean().item(), rel=1e-5)


def test_mean_frequencies() -> None:
    both = 1.0 + wave(2) + wave(4, down=True)
    assert mean_frequency(radial_power(both)) == pytest.approx(3.0)
    assert mean_frequency(radial_power(torch.ones(1, 1, 8, 8))) == 0.0


class Blur(nn.Module):
    """Passes only the frequencies 0 and 1."""

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-1]
        frequency = torch.fft.fft2(x)
        axis = torch.fft.fftfreq(size, 1 / size)
        keep = (axis[:, None].square() + axis[None].square()).sqrt() < 1.5
        return torch.fft.ifft2(frequency * keep).real


class Sharpen(nn.Module):
    """Adds a wave of frequency 5 to what comes, and halves the resolution before."""

    def forward(self, x: Tensor) -> Tensor:
        return x + wave(5, x.shape[-1])


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = Blur(), Sharpen()
        self.pool = nn.AvgPool2d(2)

    def blocks(self) -> list[nn.Module]:
        return [self.low, self.high, self.pool]

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.high(self.low(x)))


def test_blocks_are_seen_for_what_they_do() -> None:
    network: Any = Network()
    image = wave(1) + wave(4) + wave(6, down=True)
    low, high, pool = block_spectra(network, lambda: network(image))
    assert [low.name, high.name, pool.name] == ["low", "high", "pool"]
    assert mean_frequency(low.output) == pytest.approx(1.0, abs=1e-4)
    assert low.change is not None
    assert mean_frequency(low.change) == pytest.approx(5.0, abs=1e-4)  # what it took away: 4 and 6
    assert high.change is not None
    assert mean_frequency(high.change) == pytest.approx(5.0, abs=1e-4)
    assert pool.change is None
    assert pool.size == 8
    assert not network.low._forward_hooks  # nothing is left behind


@pytest.mark.parametrize("name", ["EDM", *NETWORKS])
def test_every_networks_blocks_are_seen(name: str) -> None:
    own = NETWORKS.get(name, {"model_type": "SongUNet", "attn_resolutions": (4,)} | SMALL)
    network = new_network("edm", NetworkSettings(**BASE, **own)).eval()
    for parameter in network.parameters():  # branches that begin at zero change nothing
        nn.init.normal_(parameter, std=0.1)
    x, labels = torch.randn(2, 3, 8, 8), torch.eye(4)[:2]
    found = block_frequencies(network, x, labels)
    assert len(found["output"]) == len(network.blocks())
    assert all(value is not None for row in found["output"].values() for value in row)
    assert found["change"]
    assert max(value or 0 for row in found["change"].values() for value in row) > 0


def test_spreads_and_curves() -> None:
    one, other = spread([38.0, 41.0, 50.0]), spread([51.0, 60.0, 55.0])
    assert (one.mean, one.low, one.high) == (43.0, 38.0, 50.0)
    assert one.text == "43.0 (38.0 to 50.0)"
    assert apart(one, other)
    assert not apart(one, spread([49.0, 70.0]))
    assert not apart(spread([10.0]), spread([20.0]))  # one seed says nothing
    assert not apart(spread([10.0]), other)
    curve = [(1000, 80.0), (2000, 43.0), (3000, 50.0)]
    assert first_below(curve, 44.0) == 2000
    assert first_below(curve, 1.0) is None
    with pytest.raises(ValueError, match="no values"):
        spread([])


def test_budgets_are_compared_where_all_runs_have_them() -> None:
    plain = [[(1000, 90.0), (2000, 60.0)], [(1000, 95.0), (2000, 50.0), (3000, 1.0)]]
    frozen = [[(1000, 70.0), (2000, 55.0)], [(1000, 80.0), (2000, 65.0)]]
    rows = compared(plain, frozen)
    assert [row["images"] for row in rows] == [1000, 2000]
    assert [row["apart"] for row in rows] == [True, False]
    assert rows[0]["D2O-F"].mean == 75.0


def test_two_students_at_known_distances() -> None:
    teacher = torch.zeros(4, 1, 2, 2)
    assert paired_distance(teacher + 0.3, teacher) == pytest.approx(0.3)
    half = teacher.clone()
    half[:, :, 0] = 0.4
    assert paired_distance(half, teacher) == pytest.approx(0.4 / math.sqrt(2))


def test_a_linear_network_between_two_of_its_minima() -> None:
    """(a b - 1)^2 has the minima a b = 1: (1, 1) and (-1, -1), and between them, at 0, a barrier of
    1; (2, 1/2) is another one of the first valley."""

    def loss(weights: dict[str, Tensor]) -> float:
        return float((weights["a"] * weights["b"] - 1) ** 2)

    one = {"a": torch.tensor(1.0), "b": torch.tensor(1.0), "steps": torch.tensor(3)}
    other = {"a": torch.tensor(-1.0), "b": torch.tensor(-1.0), "steps": torch.tensor(7)}
    line = along_line(one, other, loss, points=5)
    assert [share for share, _ in line] == [0, 0.25, 0.5, 0.75, 1]
    assert [value for _, value in line] == pytest.approx([0, 0.5625, 1, 0.5625, 0])
    assert barrier(line) == pytest.approx(1.0)
    near = {"a": torch.tensor(2.0), "b": torch.tensor(0.5), "steps": torch.tensor(1)}
    assert barrier(along_line(one, near, loss, points=5)) == pytest.approx(0.0156, abs=1e-3)
    assert interpolate(one, other, 0.5)["steps"] == 3


def test_rank_correlation() -> None:
    assert rank_correlation([1, 2, 3, 4], [10, 20, 30, 400]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    assert rank_correlation([1, 2, 3], [1, 3, 2]) == pytest.approx(0.5)
    assert rank_correlation([1, 1, 2], [5, 5, 9]) == pytest.approx(1.0)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) == 0.0


def test_sentences_say_what_the_numbers_say() -> None:
    def student(name: str, fd: float, pixels: float) -> dict[str, Any]:
        return {"name": name, "to data": fd, "pixels": pixels}

    rows = [student("pd", 90.0, 0.1), student("cd", 60.0, 0.2), student("GAN", 40.0, 0.5)]
    said = closeness(rows)
    assert "GAN has the best fd, 40.0, and pd is closest" in said
    assert "closeness does not go with quality (rank correlation -1.00)" in said
    agreeing = [student("pd", 90.0, 0.5), student("cd", 60.0, 0.2), student("GAN", 40.0, 0.1)]
    assert "the same one is closest" in closeness(agreeing)
    assert "closeness goes with quality (rank correlation 1.00)" in closeness(agreeing)

    fd = {"none": spread([50.0, 52.0]), "1": spread([40.0, 42.0]), "2": spread([60.0, 61.0])}
    share = {"none": 1.0, "1": 0.2, "2": 0.1}
    assert freezing_verdict(fd, share).startswith(
        "level 1, which trains 20.0 %, has the best fd, 41.0 (40.0 to 42.0), clearly better"
    )
    assert freezing_verdict(fd | {"1": spread([70.0])}, share).startswith(
        "training everything is best, 51.0 (50.0 to 52.0), clearly better than level 2"
    )
    falling = {0.0: spread([900.0]), 0.25: spread([300.0]), 1.0: spread([40.0])}
    assert "falls with each step" in pretraining_verdict(falling)
    assert "does not fall" in pretraining_verdict(falling | {0.25: spread([20.0])})
    assert moved({"a": [1.0, 2.0], "b": [3.0, 2.0], "c": [1.0, 4.0]}).startswith("in 2 of 3 blocks")


def test_objectives_at_equal_seconds() -> None:
    curve = [(10.0, 300.0), (20.0, 90.0), (30.0, 50.0)]
    assert [at_seconds(curve, seconds) for seconds in (9.0, 20.0, 29.9, 99.0)] == [
        None,
        90.0,
        90.0,
        50.0,
    ]
    images = {"GAN": spread([40.0, 42.0]), "cd": spread([80.0, 90.0]), "slow": spread([30.0, 31.0])}
    seconds = {"GAN": spread([60.0]), "cd": spread([50.0]), "slow": None}
    assert objectives_verdict(images, seconds) == (
        "slow is best at equal images, fd 30.5 (30.0 to 31.0), clearly better than the GAN alone, "
        "41.0 (40.0 to 42.0); at equal seconds cd is, 50.0."
    )
    del images["slow"]
    assert objectives_verdict(images, seconds).startswith(
        "the GAN alone is best at equal images, fd 41.0 (40.0 to 42.0), clearly better than cd"
    )
