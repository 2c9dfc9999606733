"""The clock: statistics, and on stand-ins for a GPU what is called when."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch._C._autograd import DeviceType

from fasttrain.analysis.profiling.meter import Meter, _tracer_messages, summarise
from tests.analysis.profiling.support import CPU


def test_median_and_percentiles() -> None:
    timing = summarise([5.0, 1.0, 2.0, 4.0, 3.0, 6.0])
    assert (timing.median_ms, timing.repetitions) == (3.5, 6)
    assert (timing.p20_ms, timing.p80_ms) == (2.0, 5.0)


def test_parts_are_timed_one_after_the_other() -> None:
    log: list[str] = []
    times = Meter(CPU).time(lambda: log.append("a"), lambda: log.append("b"))
    assert log == ["a", "b"]
    assert len(times) == 2
    assert min(times) >= 0


def test_rates_are_plausible() -> None:
    rates = Meter(CPU).rates(torch.float32)
    assert 1e8 < rates["copy"]["per_second"] < 1e13
    assert 1e8 < rates["matrix"]["per_second"] < 1e14
    assert rates["copy"]["repetitions"] == 20
    assert rates["matrix"]["what"] == "1024 square, float32"


class Gpu:
    """Stands in for torch.cuda: a clock that advances by what is launched, and memory."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.now = 0.0
        self.held = self.most = 100

    def launch(self, milliseconds: float, held: int = 0) -> None:
        self.now += milliseconds
        self.most = max(self.most, self.held + held)

    def Event(self, enable_timing: bool) -> Any:
        assert enable_timing
        event = SimpleNamespace()

        def record(stream: str) -> None:
            assert stream == "the stream"
            self.log.append("record")
            event.at = self.now

        def elapsed_time(end: Any) -> float:
            assert self.log[-1] == "wait"  # an event may be read only after the wait
            return float(end.at - event.at)

        event.record, event.elapsed_time = record, elapsed_time
        return event


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    fake = Gpu()
    replaced = {
        "Event": fake.Event,
        "current_stream": lambda device: "the stream",
        "synchronize": lambda device: fake.log.append("wait"),
        "memory_allocated": lambda device: fake.held,
        "max_memory_allocated": lambda device: fake.most,
        "reset_peak_memory_stats": lambda device: setattr(fake, "most", fake.held),
        "empty_cache": lambda: fake.log.append("free"),
    }
    for name, value in replaced.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return fake


def test_on_a_gpu_events_start_on_an_idle_device_and_are_read_after_the_wait(gpu: Gpu) -> None:
    meter = Meter(torch.device("cuda"))
    times = meter.time(lambda: gpu.launch(3.0), lambda: gpu.launch(4.5))
    assert times == [3.0, 4.5]
    assert gpu.log == ["wait", "record", "record", "record", "wait"]


def test_on_a_gpu_the_peak_is_what_the_work_adds(gpu: Gpu) -> None:
    meter = Meter(torch.device("cuda"))
    gpu.launch(1.0, held=900)  # before: not its own
    assert meter.peak_bytes(lambda: gpu.launch(1.0, held=50)) == 50
    assert Meter(CPU).peak_bytes(lambda: None) is None
    meter.free()
    assert gpu.log[-1] == "free"


def event(
    name: str, parent: Any = None, *, cpu: float = 0, gpu: float = 0, **other: Any
) -> SimpleNamespace:
    return SimpleNamespace(
        name=name,
        cpu_parent=parent,
        self_cpu_time_total=cpu * 1e3,
        self_device_time_total=gpu * 1e3,
        **({"device_type": DeviceType.CPU} | other),
    )


def test_time_belongs_to_the_operator_that_was_counted() -> None:
    outer = event("autograd::engine::evaluate_function: BmmBackward0", cpu=1, gpu=0)
    bmm = event("aten::bmm", outer, cpu=2, gpu=5)
    copy = event("aten::copy_", bmm, cpu=4, gpu=7)  # what bmm itself called
    alone = event("aten::copy_", cpu=8, gpu=3)
    kernel = {"device_type": DeviceType.CUDA, "is_user_annotation": False}
    kernels = [event("gemm", gpu=15, **kernel), event("stray", gpu=2, **kernel)]
    ranges = event("forward G", gpu=99, device_type=DeviceType.CUDA, is_user_annotation=True)
    profiled: Any = SimpleNamespace(events=lambda: [outer, bmm, copy, alone, *kernels, ranges])
    counted = {"aten::bmm", "aten::copy_"}
    on_gpu = Meter(torch.device("cuda")).own_times(profiled, counted)
    assert {name: t for name, t in on_gpu.items() if t} == {
        "aten::bmm": 12.0, "aten::copy_": 3.0, "kernels of no operator": 2.0,
    }  # fmt: skip
    profiled = SimpleNamespace(events=lambda: [outer, bmm, copy, alone])
    on_cpu = Meter(CPU).own_times(profiled, counted)
    assert {name: t for name, t in on_cpu.items() if t} == {
        outer.name: 1.0, "aten::bmm": 6.0, "aten::copy_": 8.0,
    }  # fmt: skip


def test_only_the_tracers_own_lines_are_held_back(capfd: pytest.CaptureFixture[str]) -> None:
    with _tracer_messages():
        os.write(2, b"USDT: profiler_start\nno permission to read counters\n")
    assert capfd.readouterr().err == "no permission to read counters\n"
