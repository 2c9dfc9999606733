"""`torch.profiler`: a build without CUDA cannot trace a GPU, and hangs when it is asked to. Here it
traces the host, and an operator's time on the GPU is what it took there."""

from __future__ import annotations

from typing import Any

from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity
from torch.profiler.profiler import _KinetoProfile

__all__ = ["install"]


def install() -> None:
    """Let profiles be made of pretend GPUs."""
    begin = _KinetoProfile.__init__

    def of_the_host(self: Any, *, activities: Any = None, **options: Any) -> None:
        begin(self, activities=set(activities or ()) - {ProfilerActivity.CUDA} or None, **options)

    _KinetoProfile.__init__ = of_the_host  # type: ignore[method-assign]
    host_time = property(lambda event: event.self_cpu_time_total)
    FunctionEvent.self_device_time_total = host_time  # type: ignore[assignment]
