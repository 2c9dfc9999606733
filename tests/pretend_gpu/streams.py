"""Streams and events. Nothing runs behind the host's back, so they order nothing: an event is the
time at which it was recorded."""

from __future__ import annotations

import threading
import time
from typing import Any

import torch

from .devices import index_of
from .waits import wait

__all__ = ["Event", "Stream", "StreamContext", "current_stream"]


class Event:
    """`torch.cuda.Event`."""

    def __init__(self, enable_timing: bool = False, **_: Any) -> None:
        self.timed = enable_timing
        self.at: float | None = None

    def record(self, stream: Any = None) -> None:
        self.at = time.perf_counter()

    def wait(self, stream: Any = None) -> None:
        return None

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        wait("synchronize")

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds from this event to another."""
        if not (self.timed and end.timed):
            raise ValueError("Both events must be created with argument 'enable_timing=True'.")
        if self.at is None or end.at is None:
            raise ValueError("Both events must be recorded before calculating elapsed time.")
        return (end.at - self.at) * 1e3


class Stream:
    """`torch.cuda.Stream`."""

    def __init__(self, device: Any = None, priority: int = 0, **_: Any) -> None:
        self.device = torch.device("cuda", index_of("cuda" if device is None else device))
        self.device_index = self.device.index
        self.priority = priority
        self.cuda_stream = self.stream_id = 0

    def wait_stream(self, other: Any) -> None:
        return None

    def wait_event(self, event: Any) -> None:
        return None

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        wait("synchronize")

    def __enter__(self) -> Stream:
        _currents().append(self)
        return self

    def __exit__(self, *_: Any) -> None:
        _currents().pop()


_of_thread = threading.local()


def _currents() -> list[Stream]:
    if not hasattr(_of_thread, "streams"):
        _of_thread.streams = []
    return _of_thread.streams


class StreamContext:
    """`torch.cuda.stream(stream)`; nothing for None."""

    def __init__(self, stream: Stream | None) -> None:
        self.stream = stream

    def __enter__(self) -> None:
        if self.stream is not None:
            self.stream.__enter__()

    def __exit__(self, *_: Any) -> None:
        if self.stream is not None:
            self.stream.__exit__()


def current_stream(device: Any = None) -> Stream:
    """The one that a `with` of this thread has made current, or the device's default one."""
    index = index_of("cuda" if device is None else device)
    mine = [stream for stream in _currents() if stream.device_index == index]
    return mine[-1] if mine else Stream(index)
