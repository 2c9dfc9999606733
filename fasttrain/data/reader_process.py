"""A forked process that reads some logical streams and sends their parts through a pipe.

    process, pipe = start_reader(source, {0: Cursor(0, 0)})
    for part in received([pipe], shape, pin=False): ...         # Died when the process has
    end([process])

A pipe for each process and no shared memory: what kills a reader in the middle of a part ends its
pipe and harms no other, and /dev/shm may be as small as it likes.
"""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import pickle
import random
import signal
import traceback
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from fasttrain.data.order import Cursor
from fasttrain.data.parts import Part, Source, merged
from fasttrain_data.pool import die_with_parent

__all__ = ["Died", "end", "received", "start_reader", "state_of"]

PIPE_BYTES = 1 << 20
"""What a reader may have written ahead: as much as Linux allows any user."""


class Died(Exception):
    """A reader's pipe has ended."""


def start_reader(source: Source, cursors: Mapping[int, Cursor]) -> tuple[Any, BinaryIO]:
    """A process that reads some streams, and the end of its pipe to read from."""
    receiving, sending = os.pipe()
    try:
        with suppress(OSError):  # the user has very many pipes, or may not have so large ones
            fcntl.fcntl(sending, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        args = (source, cursors, receiving, sending, os.getpid())
        process = multiprocessing.get_context("fork").Process(target=_read, args=args, daemon=True)
        process.start()
    except BaseException:
        os.close(receiving)
        raise
    finally:
        os.close(sending)  # the process alone has it: when it ends, so does the pipe
    return process, os.fdopen(receiving, "rb")


def _read(
    source: Source, cursors: Mapping[int, Cursor], receiving: int, sending: int, parent: int
) -> None:
    """A reader's work: each part without its pixels, pickled, and then those."""
    # A launcher's signals and Ctrl-C reach the whole group, and the main process still needs its
    # images until it has made its checkpoint.
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    die_with_parent(parent)
    os.close(receiving)
    torch.set_num_threads(1)
    seed = (source.order.seed + min(cursors)) % 2**32  # for stages of users: no two alike
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  # the one that they may use
    torch.manual_seed(seed)
    with suppress(BrokenPipeError), os.fdopen(sending, "wb") as pipe:
        try:
            for part in source.parts(cursors):
                rest = (part.cursors, part.skipped, part.faults, part.error, part.again)
                pickle.dump((part.labels.numpy(), *rest), pipe, pickle.HIGHEST_PROTOCOL)
                pipe.write(_bytes(part.pixels))
                pipe.flush()
        except BrokenPipeError:
            raise
        except Exception as error:  # of a user's stage
            pipe.write(_pickled(error))


def _pickled(error: Exception) -> bytes:
    """An error, with the lines where it was raised, for another process."""
    text = traceback.format_exc()
    try:
        error.add_note(f"In a reader process:\n{text}")
        content = pickle.dumps(error)
        pickle.loads(content)
    except Exception:  # some types cannot be made again from what they keep
        return pickle.dumps(RuntimeError(text))
    return content


def received(pipes: Sequence[BinaryIO], shape: tuple[int, ...], pin: bool) -> Generator[Part]:
    """The joined parts that readers write to their pipes: pixels go to their place in a batch
    straight from there."""
    with ExitStack() as opened:
        for pipe in pipes:
            opened.enter_context(pipe)
        while True:
            pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=pin)
            parts: list[Part] = []
            begin = 0
            for pipe in pipes:
                try:
                    head = pickle.load(pipe)
                except (EOFError, pickle.UnpicklingError):
                    raise Died from None
                if isinstance(head, Exception):
                    raise head
                labels, *rest = head
                place = pixels[begin : begin + len(labels)]
                view = _bytes(place)
                if pipe.readinto(view) != len(view):  # type: ignore[attr-defined]
                    raise Died
                parts.append(Part(place, torch.from_numpy(labels), *rest))
                begin += len(labels)
            yield merged(pixels, parts)


def _bytes(pixels: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return memoryview(pixels.numpy()).cast("B")  # type: ignore[arg-type]


def end(processes: Sequence[Any]) -> None:
    """Kill readers, and wait until they are gone."""
    for process in processes:
        process.kill()
    for process in processes:
        process.join(timeout=5)
        if process.exitcode is None:
            # Not even SIGKILL ends a process that waits for a disk which is gone, and
            # multiprocessing would wait for it when this process ends.
            multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]


def state_of(pid: int) -> str:
    """What a process that gives nothing does, as Linux sees it."""
    try:
        letter = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "is gone"
    known = {"T": "is stopped", "D": "waits for a disk or network", "R": "runs", "S": "waits"}
    return known.get(letter, f"is in state {letter}")
