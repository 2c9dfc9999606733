"""A forked process that reads some logical streams and sends their parts through a pipe.

    reader = start_reader(source, {0: Cursor(0, 0)})
    for part in received([reader], shape, pin=False): ...       # Died when the process has
    end([reader.process])

Each process has a pipe, without shared memory: a reader that is killed in the middle of a part ends
only its own pipe, and the size of /dev/shm does not matter.
"""

from __future__ import annotations

import fcntl
import math
import multiprocessing
import os
import pickle
import random
import signal
import traceback
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from fasttrain.data.order import Cursor
from fasttrain.data.parts import Part, Source, merged
from fasttrain_data.pool import die_with_parent

__all__ = ["Died", "Reader", "end", "received", "release", "start_reader", "state_of"]

AHEAD = 2
"""Parts that a reader prepares ahead."""
JOIN = 5.0
"""Seconds to wait for a killed process to end."""
MOST_PIPE_BYTES = 1 << 20
"""Largest pipe of an unprivileged user in Linux, in bytes."""


@dataclass(frozen=True)
class Reader:
    """A process, the reading end of its pipe, and the eventfd that counts the parts it may still
    prepare."""

    process: Any
    pipe: BinaryIO
    wanted: int

    def close(self) -> None:
        self.pipe.close()
        os.close(self.wanted)


class Died(Exception):
    """A reader's pipe has ended."""


def start_reader(source: Source, cursors: Mapping[int, Cursor]) -> Reader:
    """Fork a process that reads some streams. Raises OSError when that fails."""
    receiving, sending = os.pipe()
    wanted = -1
    try:
        size = AHEAD * len(cursors) * source.per_stream * math.prod(source.shape)
        with suppress(OSError):  # the user has too many pipes already
            fcntl.fcntl(sending, fcntl.F_SETPIPE_SZ, min(size + 4096, MOST_PIPE_BYTES))
        wanted = os.eventfd(AHEAD, os.EFD_SEMAPHORE | os.EFD_CLOEXEC)
        args = (source, cursors, sending, wanted, os.getpid())
        process = multiprocessing.get_context("fork").Process(target=_read, args=args, daemon=True)
        process.start()
    except BaseException:
        os.close(receiving)
        if wanted >= 0:
            os.close(wanted)
        raise
    finally:
        os.close(sending)  # only the process has it, so the pipe ends with it
    return Reader(process, os.fdopen(receiving, "rb"), wanted)


def _read(
    source: Source, cursors: Mapping[int, Cursor], sending: int, wanted: int, parent: int
) -> None:
    """A reader's work: sends each part without its pixels as a pickle, and then the pixels."""
    # A launcher's signals and Ctrl-C reach the whole group, but the main process needs the
    # images until it has written its checkpoint.
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    die_with_parent(parent)
    torch.set_num_threads(1)
    seed = (source.order.seed + min(cursors)) % 2**32  # for users' stages: different in each reader
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # the one that they may use
    torch.manual_seed(seed)
    with os.fdopen(sending, "wb") as pipe:
        try:
            for part in source.parts(cursors):
                os.eventfd_read(wanted)
                rest = (part.cursors, part.skipped, part.faults, part.error, part.again)
                pickle.dump((part.labels.numpy(), *rest), pipe, pickle.HIGHEST_PROTOCOL)
                pipe.write(_bytes(part.pixels))
                pipe.flush()
        except Exception as error:  # from a user's stage
            pipe.write(_pickled(error))


def _pickled(error: Exception) -> bytes:
    """An error with its traceback, as a pickle for another process."""
    text = traceback.format_exc()
    try:
        error.add_note(f"In a reader process:\n{text}")
        content = pickle.dumps(error)
        pickle.loads(content)
    except Exception:  # some types cannot be unpickled
        return pickle.dumps(RuntimeError(text))
    return content


def received(readers: Sequence[Reader], shape: tuple[int, ...], pin: bool) -> Generator[Part]:
    """The merged parts of readers: pixels go from a pipe directly to their position in a batch."""
    with ExitStack() as opened:
        for reader in readers:
            opened.callback(reader.close)
        while True:
            pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=pin)
            parts: list[Part] = []
            begin = 0
            for reader in readers:
                parts.append(_one(reader, pixels[begin:]))
                begin += len(parts[-1].labels)
            yield merged(pixels, parts)


def _one(reader: Reader, free: torch.Tensor) -> Part:
    """The next part of a reader, its pixels in the first rows of `free`. Raises Died, and errors of
    a stage."""
    try:
        head = pickle.load(reader.pipe)
    except (EOFError, pickle.UnpicklingError):
        raise Died from None
    if isinstance(head, Exception):
        raise head
    labels, *rest = head
    pixels = free[: len(labels)]
    view = _bytes(pixels)
    if reader.pipe.readinto(view) != len(view):  # type: ignore[attr-defined]
        raise Died
    os.eventfd_write(reader.wanted, 1)
    return Part(pixels, torch.from_numpy(labels), *rest)


def _bytes(pixels: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return memoryview(pixels.numpy().reshape(-1))  # type: ignore[arg-type]


def end(processes: Sequence[Any]) -> None:
    """Kill readers, and wait until they are gone."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join(timeout=JOIN)
        if process.exitcode is None:
            # Not even SIGKILL ends a process that waits for a missing disk, and multiprocessing
            # would wait for it when this process ends.
            multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]


def release(process: Any) -> None:
    """Close the pipes of a process that has ended: else they wait for the garbage collector."""
    with suppress(ValueError):  # it has not
        process.close()


def state_of(pid: int) -> str:
    """State of a silent process, according to Linux."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "is gone"
    known = {"T": "is stopped", "D": "waits for a disk or network", "R": "runs", "S": "waits"}
    return known.get(letter, f"is in state {letter}")
