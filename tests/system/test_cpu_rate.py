"""The measurement that decides bfloat16 on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch

from fasttrain.system import cpu_rate
from fasttrain.system.cpu_rate import Gain, bfloat16_gain


class Clock:
    """Time that passes only while a case runs."""

    def __init__(self) -> None:
        self.now, self.runs = 0.0, {torch.float32: 0, torch.bfloat16: 0}

    def __call__(self) -> float:
        return self.now


def measured(monkeypatch: pytest.MonkeyPatch, ms: dict[torch.dtype, float]) -> tuple[Gain, Clock]:
    clock = Clock()

    def case(shape: tuple[int, ...], dtype: torch.dtype) -> Callable[[], None]:
        def run() -> None:
            first = clock.runs[dtype] < len(cpu_rate.CASES)
            clock.runs[dtype] += 1
            clock.now += (0.05 if first else 0) + ms[dtype] / 1000  # the first makes the kernel

        return run

    monkeypatch.setattr(cpu_rate, "_case", case)
    return bfloat16_gain(clock=clock), clock


@pytest.mark.parametrize(("low", "wins"), [(4.0, True), (8.0, False), (400.0, False)])
def test_what_is_faster_wins(low: float, wins: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    gain, clock = measured(monkeypatch, {torch.float32: 8.0, torch.bfloat16: low})
    assert gain.gain == pytest.approx(8 / low)
    assert gain.wins is wins
    assert clock.runs[torch.float32] >= cpu_rate.LEAST * len(cpu_rate.CASES)
    if low > 100:  # by far the slower one is not measured on and on
        assert clock.runs[torch.bfloat16] == 2 * len(cpu_rate.CASES)


def test_it_takes_about_a_second_and_no_draws() -> None:
    before = torch.get_rng_state()
    start = time.perf_counter()
    gain = bfloat16_gain(seconds=0.05)
    assert time.perf_counter() - start < 30  # two turns at least, on any machine
    assert torch.equal(torch.get_rng_state(), before)
    assert min(gain.float32_ms, gain.bfloat16_ms) > 0


def test_time_that_others_take_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait of the process, as beside other work, in every measurement of bfloat16."""
    took = {torch.float32: 0.004, torch.bfloat16: 0.001}

    def case(shape: tuple[int, ...], dtype: torch.dtype) -> Callable[[], None]:
        def run() -> None:
            if dtype == torch.bfloat16:
                time.sleep(0.01)
            until = time.process_time() + took[dtype]
            while time.process_time() < until:
                pass

        return run

    monkeypatch.setattr(cpu_rate, "_case", case)
    assert bfloat16_gain(seconds=0.01).wins
