"""Everything that depends on the device: its clock, its memory, its rates, and its own times in
torch.profiler. No other module of this package depends on the device.

    meter = Meter(torch.device("cuda"))
    times = [meter.time(step) for _ in range(10)]
    print(summarise(times).median_ms)
"""

from __future__ import annotations

import os
import platform
import re
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

__all__ = ["Meter", "Timing", "cpu_name", "summarise", "version_of"]

GPU_RATES, CPU_RATES = (1 << 28, 8192), (1 << 25, 1024)
"""Sizes for the ceilings: values of the copy, rows of the matrices."""


@dataclass(frozen=True)
class Timing:
    """Median of the repetitions with the 20th and 80th percentile, in milliseconds."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    repetitions: int


def summarise(milliseconds: Sequence[float]) -> Timing:
    values = torch.tensor(milliseconds, dtype=torch.float64)
    at = torch.tensor([0.5, 0.2, 0.8], dtype=torch.float64)
    median, low, high = values.quantile(at).tolist()
    return Timing(median, low, high, len(milliseconds))


class Meter:
    """The clock and the memory of a device.

    On a GPU a stamp is an event in the stream: work is timed as the GPU does it, without a wait.
    Elsewhere it is the wall clock.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cuda = device.type == "cuda"

    def stamp(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def milliseconds(self, start: Any, end: Any) -> float:
        """Time between two stamps; on a GPU only after `wait`."""
        return float(start.elapsed_time(end)) if self.cuda else (end - start) * 1e3

    def wait(self) -> None:
        """Wait until the device has finished all work."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def time(self, *parts: Callable[[], Any]) -> list[float]:
        """Milliseconds of each part, run one after the other from an idle device."""
        self.wait()
        stamps = [self.stamp()]
        for part in parts:
            part()
            stamps.append(self.stamp())
        self.wait()
        return [self.milliseconds(a, b) for a, b in pairwise(stamps)]

    def peak_bytes(self, work: Callable[[], Any]) -> int | None:
        """Peak memory of `work` above the memory before it; None without a count."""
        if not self.cuda:
            work()
            return None
        self.wait()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        work()
        self.wait()
        return torch.cuda.max_memory_allocated(self.device) - before

    def free(self) -> None:
        """Release cached memory, after a run that did not fit."""
        if self.cuda:
            torch.cuda.empty_cache()

    def rates(
        self, dtype: torch.dtype, sizes: tuple[int, int] | None = None
    ) -> dict[str, dict[str, Any]]:
        """Bytes/s, read plus written, of a copy that no cache holds, and FLOP/s of a square matrix
        product in `dtype`: the two ceilings. Random data, median of 20.

        sizes: values of the copy and rows of the matrices, where a rehearsal wants small ones.
        """
        numel, side = sizes or (GPU_RATES if self.cuda else CPU_RATES)
        source, moved = torch.randn(numel, device=self.device), 8 * numel
        copies = self._repeat(torch.empty_like(source).copy_, source)
        a, b = (torch.randn(side, side, device=self.device).to(dtype) for _ in range(2))
        products = self._repeat(partial(torch.mm, out=torch.empty_like(a)), a, b)
        del source
        self.free()
        return {
            "copy": self._rate(
                moved, copies, f"{moved / 2**20:.0f} MiB read plus written, float32"
            ),
            "matrix": self._rate(2 * side**3, products, f"{side} square, {_short(dtype)}"),
        }

    def _repeat(self, function: Callable[..., Any], *arguments: torch.Tensor) -> Timing:
        work = partial(function, *arguments)
        for _ in range(3):
            work()
        return summarise([self.time(work)[0] for _ in range(20)])

    @staticmethod
    def _rate(amount: int, timing: Timing, what: str) -> dict[str, Any]:
        return {"per_second": amount / timing.median_ms * 1e3, "what": what, **timing.__dict__}

    @contextmanager
    def profiler(self) -> Iterator[profile]:
        activities = [ProfilerActivity.CPU]
        with _tracer_messages():
            if self.cuda:
                activities.append(ProfilerActivity.CUDA)
                with profile(activities=activities):  # the first one starts the tracer
                    torch.zeros(1, device=self.device)
            with profile(activities=activities) as running:
                yield running

    def own_times(self, profiled: profile, counted: Collection[str]) -> dict[str, float]:
        """Milliseconds of the device by operator, none counted twice. Work inside a counted
        operator belongs to it, as do its bytes. Autograd's nodes and named ranges keep the rest."""
        own: dict[str, float] = defaultdict(float)
        kernels = 0.0
        for event in profiled.events() or ():
            if self.cuda and event.device_type != DeviceType.CPU:
                if not getattr(event, "is_user_annotation", False):
                    kernels += event.self_device_time_total / 1e3
                continue
            time_us = event.self_device_time_total if self.cuda else event.self_cpu_time_total
            name, parent = event.name, event.cpu_parent
            while parent is not None:
                name, parent = parent.name if parent.name in counted else name, parent.cpu_parent
            own[name] += time_us / 1e3
        own["kernels of no operator"] += max(0.0, kernels - sum(own.values()))
        return dict(own)

    def machine(self) -> dict[str, Any]:
        """Description of the machine."""
        facts: dict[str, Any] = {
            "device": cpu_name(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": version_of("triton"),
            "cuda": torch.version.cuda,
        }
        if self.cuda:
            properties = torch.cuda.get_device_properties(self.device)
            facts |= {
                "device": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_bytes": properties.total_memory,
                "cudnn": torch.backends.cudnn.version(),
                "tf32_convolutions": torch.backends.cudnn.allow_tf32,
                "tf32_matrix_products": torch.backends.cuda.matmul.allow_tf32,
            }
        return facts

    @property
    def method(self) -> str:
        """Method of the time measurements, as text."""
        if self.cuda:
            return (
                "CUDA events from an idle device, after warm-up; columns take turns; the cache is "
                "not flushed; launch overhead counts where the GPU waits for it"
            )
        return "wall clock, after warm-up; columns take turns; caches are not flushed"


@contextmanager
def _tracer_messages() -> Iterator[None]:
    """Filter the tracer's lines at start and stop, which it writes without Python; pass others
    on."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about dropped events, when there were none
        stderr = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            caught.seek(0)
            for line in caught.read().decode(errors="replace").splitlines():
                if not line.startswith("USDT:"):
                    print(line, file=sys.stderr)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def version_of(package: str) -> str | None:
    """None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    text = path.read_text(errors="replace") if path.is_file() else ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return f"{match[1] if match else platform.machine()}, {os.cpu_count()} cores"
