"""Times of functions that run in turns, by the meter of `fasttrain profile`: median, p20 and p80 of
the forward and of the backward.

A round runs every function once, so a drift of the clock meets all of them alike. Before each timed
region the GPU's cache is flushed by reading another buffer, several times over: this takes about a
millisecond, in which the CPU queues the work, so that the events see the GPU's time and not the
launch overhead of Python. With `hide_launch=False` the GPU waits idle instead and the overhead
counts: for what consists of many small launches.

Each backward has a forward of its own, outside its timed region: no retained graph.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from fasttrain.analysis.profiling.meter import Meter, Timing, summarise

__all__ = ["Clock", "DeviceLost", "Run", "Times", "describe", "measure"]

_FLUSH_BYTES = 256 << 20  # several times the cache of any GPU
_FLUSH_READS = 10
_WARM_UP = 3


class DeviceLost(Exception):
    """The GPU's context is broken: nothing more can run in this process."""


class Run(NamedTuple):
    """`forward()` and, where there is one, `backward(what forward returned)`."""

    forward: Callable[[], Any]
    backward: Callable[[Any], Any] | None = None


class Times(NamedTuple):
    forward: Timing
    backward: Timing | None


class Clock:
    """Times one call at a time by the meter's stamps, which are read only after `wait`."""

    def __init__(self, device: torch.device) -> None:
        self.meter = Meter(device)
        if self.meter.cuda:
            self.buffer = torch.randn(_FLUSH_BYTES // 4, device=device)

    def time(
        self, function: Callable[[], Any], hide_launch: bool = True
    ) -> tuple[Any, Callable[[], float]]:
        """What `function` returned, and its milliseconds, to be called after `wait`."""
        if self.meter.cuda:
            for _ in range(_FLUSH_READS):
                self.buffer.sum()
        if not hide_launch:
            self.meter.wait()
        before = self.meter.stamp()
        result = function()
        after = self.meter.stamp()
        return result, lambda: self.meter.milliseconds(before, after)

    def wait(self) -> None:
        self.meter.wait()

    def recover(self, error: Exception) -> None:
        """After a failure: frees memory. Raises DeviceLost where the GPU can do no more."""
        try:
            self.meter.wait()
            self.meter.free()
        except RuntimeError:
            raise DeviceLost(describe(error)) from error


def measure(
    runs: Mapping[str, Run],
    clock: Clock,
    *,
    seconds: float,
    hide_launch: bool = True,
    least: int = 10,
    most: int = 100,
) -> dict[str, Times | str]:
    """Times of each run, or the text of the error that ended it; the others go on.

    As many rounds as fit in about `seconds`, within `least` and `most`, after a warm-up in which
    whatever compiles has compiled.
    """
    failed: dict[str, str] = {}
    samples: dict[str, list[tuple[float, ...]]] = {name: [] for name in runs}

    def take_turns(keep: bool) -> float:
        start = time.perf_counter()
        for name, run in runs.items():
            if name not in failed:
                try:
                    readings = _once(run, clock, hide_launch)
                    clock.wait()
                    if keep:
                        samples[name].append(tuple(read() for read in readings))
                except Exception as error:
                    failed[name] = describe(error)
                    clock.recover(error)
        return time.perf_counter() - start

    for _ in range(_WARM_UP):
        last = take_turns(keep=False)
    for _ in range(min(most, max(least, int(seconds / max(last, 1e-9))))):
        take_turns(keep=True)
    return {
        name: failed[name] if name in failed else _times(taken) for name, taken in samples.items()
    }


def _once(run: Run, clock: Clock, hide_launch: bool) -> list[Callable[[], float]]:
    result, forward = clock.time(run.forward, hide_launch)
    if run.backward is None:
        return [forward]
    backward = run.backward
    return [forward, clock.time(lambda: backward(result), hide_launch)[1]]


def _times(samples: list[tuple[float, ...]]) -> Times:
    forward, *backward = (summarise(list(column)) for column in zip(*samples, strict=True))
    return Times(forward, backward[0] if backward else None)


def describe(error: Exception) -> str:
    """An error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
