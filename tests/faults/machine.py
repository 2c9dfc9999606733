"""Machines at fault while a run trains: readers that hang, a data folder that goes away, disks that
fail, no descriptors, no memory, no shared memory. On the set and with the settings of `data.py`.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fasttrain.checkpoints import checkpoint
from fasttrain.data import parts, stages, storage
from fasttrain_data import fetching
from tests.faults.data import SETTINGS, assert_stopped, copied, small_shards, unbroken
from tests.faults.killed import SAME
from tests.faults.lab import (
    Inject,
    Lab,
    assert_same,
    fault,
    intact,
    nth,
    patch,
    patch_step,
    wait_for,
)
from tests.hostile.shared_memory import fill_shared_memory

ENDS = "a checkpoint, status 75, one line that names it; "
AGAIN = "tried again, nothing skipped; the run ends bit-identical to an unbroken one"


def quick(inject: Inject) -> Inject:
    """With pauses of milliseconds between attempts."""

    def do() -> None:
        fetching.random.uniform = lambda *_: 0.01
        inject()

    return do


def at_step(number: int, act: Callable[[], Any]) -> Inject:
    return quick(lambda: patch_step(nth(number, act)))


def ends(
    lab: Lab, run: Path, settings: Sequence[str], inject: Inject, *parts: str, ranks: int = 1
) -> None:
    """The run ends with 75 and one checkpoint more, on all ranks with the same line."""
    before = len(intact(run))
    on = [ranks - 1]
    said = lab.train(run, *settings, inject=inject, on=on, expect=[75] * ranks)
    assert_stopped(said, *parts, ranks=ranks)
    assert "skipped" not in said
    assert len(intact(run)) == before + 1


def goes_on(lab: Lab, run: Path, settings: Sequence[str], **options: Any) -> None:
    said = lab.train(run, *settings, **options)
    assert "skipped" not in said
    assert_same(unbroken(lab, 1), run)


def freeze_reader() -> None:
    reader: Any = multiprocessing.active_children()[0]
    os.kill(reader.pid, signal.SIGSTOP)


def frozen_reader(lab: Lab, ranks: int) -> tuple[Path, list[str]]:
    run = lab.new_run(f"reader-frozen-{ranks}")
    settings = [*SETTINGS, f"data.path={small_shards(lab)}", "data.workers=2"]
    settings.append("data.reader_timeout=1")
    message = [str(small_shards(lab)), "have sent no images for 1 s", "is stopped"]
    ends(lab, run, settings, at_step(1, freeze_reader), *message, ranks=ranks)
    return run, settings


@fault("machine", "SIGSTOP to one of two reader processes", ENDS + SAME)
def reader_frozen(lab: Lab) -> None:
    run, settings = frozen_reader(lab, 1)
    goes_on(lab, run, settings)


@fault("machine", "the same on rank 1 of two", "both ranks: the same checkpoint, status and line")
def reader_frozen_on_rank_1(lab: Lab) -> None:
    frozen_reader(lab, 2)


def hang() -> None:
    patch(stages, "decode_record", lambda *_, **__: time.sleep(1000))


@fault("machine", "a read that never returns", ENDS + SAME)
def read_hangs(lab: Lab) -> None:
    run, data = lab.new_run("read-hangs"), small_shards(lab)
    settings = [*SETTINGS, f"data.path={data}", "data.reader_timeout=1"]
    ends(lab, run, settings, at_step(2, hang), f"{data} has sent no images for 1 s")
    goes_on(lab, run, settings)


@fault(
    "machine",
    "SIGTERM while a read never returns",
    "a checkpoint of the last iteration, status 85; " + SAME,
)
def sigterm_while_a_read_hangs(lab: Lab) -> None:
    run = lab.new_run("read-hangs-term")
    settings = [*SETTINGS, f"data.path={small_shards(lab)}"]
    marker = lab.folder / "hangs"
    inject = at_step(2, lambda: patch(stages, "decode_record", hang_after(marker)))
    [child] = lab.start(run, *settings, inject=inject)
    wait_for(marker.exists)
    os.kill(child.pid, signal.SIGTERM)
    assert child.wait() == 85, child.said()
    assert "stopped at 32 images; the same command resumes it" in child.said()
    assert intact(run) == [32]
    goes_on(lab, run, settings)


def hang_after(marker: Path) -> Callable[..., None]:
    def do(*_: Any, **__: Any) -> None:
        marker.touch()
        time.sleep(1000)

    return do


@fault("machine", "the data folder moved away", ENDS + "with it back " + SAME)
def folder_gone(lab: Lab) -> None:
    run = lab.new_run("folder-gone")
    with copied(lab, "folder-gone") as (copy, settings):
        away = copy.with_name(f"{copy.name}-away")
        settings.append("data.attempts=2")
        message = [f"cannot read {copy}/shard-", "it does not exist any more (2 attempts)"]
        ends(lab, run, settings, at_step(2, lambda: copy.rename(away)), *message)
        away.rename(copy)
        goes_on(lab, run, settings)


@fault("machine", "the data folder moved away, and back between two attempts", AGAIN)
def folder_back(lab: Lab) -> None:
    with copied(lab, "folder-back") as (copy, settings):
        away = copy.with_name(f"{copy.name}-away")

        def go() -> None:
            copy.rename(away)
            patch(parts, "pause", nth(2, lambda: away.rename(copy)))

        goes_on(lab, lab.new_run("folder-back"), settings, inject=at_step(2, go))
        assert copy.exists()


def failing(number: int, times: int) -> Callable[[], None]:
    """The next opens of shards fail."""
    left = [OSError(number, os.strerror(number))] * times

    def fail(*_: Any, **__: Any) -> None:
        if left:
            raise left.pop()

    return lambda: patch(storage, "open_shard", fail)


@fault("machine", "EIO from two opens of a shard", AGAIN)
def two_failures(lab: Lab) -> None:
    settings = [*SETTINGS, f"data.path={small_shards(lab)}"]
    inject = at_step(2, failing(errno.EIO, 2))
    goes_on(lab, lab.new_run("two-failures"), settings, inject=inject)


@fault("machine", "ESTALE from every open of a shard", ENDS + SAME)
def every_open_fails(lab: Lab) -> None:
    run, data = lab.new_run("stale"), small_shards(lab)
    settings = [*SETTINGS, f"data.path={data}"]
    message = [f"cannot read {data}/shard-", "Stale file handle (5 attempts)"]
    ends(lab, run, settings, at_step(2, failing(errno.ESTALE, 99)), *message)
    goes_on(lab, run, settings)


def limited(which: int, value: int) -> Inject:
    """A limit of the reader process from its third part on, which needs some of it."""
    made = []

    def limit(*_: Any) -> None:
        if multiprocessing.parent_process() is None:
            return
        made.append(1)
        if len(made) > 2:
            resource.setrlimit(which, (value, resource.getrlimit(which)[1]))
            if which == resource.RLIMIT_AS:
                bytearray(1 << 34)  # more than the heap can have left

    return quick(lambda: patch(parts.Source, "_part", limit))


@fault("machine", "a reader without descriptors (RLIMIT_NOFILE)", ENDS + SAME)
def no_descriptors(lab: Lab) -> None:
    run, data = lab.new_run("no-descriptors"), small_shards(lab)
    settings = [*SETTINGS, f"data.path={data}", "data.workers=1"]
    inject = limited(resource.RLIMIT_NOFILE, 3)
    ends(lab, run, settings, inject, f"cannot read {data}/shard-", "Too many open files (5 att")
    goes_on(lab, run, settings)


@fault("machine", "a reader without memory (RLIMIT_AS)", ENDS + SAME)
def no_memory(lab: Lab) -> None:
    run, data = lab.new_run("no-memory"), small_shards(lab)
    settings = [*SETTINGS, f"data.path={data}", "data.workers=1"]
    inject = limited(resource.RLIMIT_AS, 1 << 20)
    ends(lab, run, settings, inject, f"not enough memory to read {data} (5 attempts)")
    goes_on(lab, run, settings)


def without_shared_memory() -> None:
    """None of it is left; who may not mount that has readers that can make no file of any size."""
    if not fill_shared_memory():
        none = lambda *_: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # noqa: E731
        patch(parts.Source, "_part", none)


@fault("machine", "no shared memory, with two readers", "not needed: the run ends bit-identical")
def no_shared_memory(lab: Lab) -> None:
    settings = [*SETTINGS, f"data.path={small_shards(lab)}", "data.workers=2"]
    goes_on(lab, lab.new_run("no-shm"), settings, inject=without_shared_memory)


@fault(
    "machine",
    "EIO while a checkpoint is synced to disk",
    "status 75, the file named; the checkpoint before is whole, and " + SAME,
)
def disk_fails(lab: Lab) -> None:
    run = lab.new_run("disk-fails")

    def fail(path: Path) -> None:
        if path.name == "ema.safetensors" and "64" in path.parent.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    said = lab.train(run, inject=lambda: patch(checkpoint, "sync", fail), expect=[75])
    file = run / "checkpoints/step-0000000064.tmp/ema.safetensors"
    assert said.endswith(f"Input/output error: {file}; run the same command again\n")
    assert "Traceback" not in said
    assert intact(run) == [32]
    lab.assert_ends_like_unbroken(run)
