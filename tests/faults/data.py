"""Shards and images that go bad, servers and reader processes that go away, while a run trains.

The set is digits in shards of 16, read in windows of 8: an iteration reads the next 8 records of
each of two streams. Stream 0 reads shard 84 in iterations 3 and 4, stream 1, which is rank 1's of
two, shard 64.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.stats import read_stats
from fasttrain.data.order import EpochOrder
from fasttrain_data import convert
from tests.data.damage import damage_images
from tests.faults.child import free_port
from tests.faults.damaged import cut, flip
from tests.faults.killed import SAME
from tests.faults.lab import (
    KILLED,
    Lab,
    assert_same,
    fault,
    intact,
    lines,
    nth,
    patch_step,
    wait_for,
)

STOPS = "a checkpoint, status 2, one line; with it fixed "
# The classes' mean features, with which a discriminator would begin, would miss bad images, too.
SETTINGS = [
    "data.window=8",
    "data.streams=2",
    "checkpoint.every=1000",
    "discriminator.class_embedding=random",
]


@cache
def small_shards(lab: Lab) -> Path:
    folder = lab.folder / "digits-16"
    images = [shard.images for shard in convert("digits", folder, images_per_shard=16).shards]
    order = EpochOrder(images, streams=2, seed=0, window=8)
    assert (order.shards(0, 0)[1], order.shards(0, 1)[1]) == (84, 64)
    return folder


@cache
def unbroken(lab: Lab, ranks: int) -> Path:
    run = lab.new_run(f"data-unbroken-{ranks}")
    lab.train(run, *SETTINGS, f"data.path={small_shards(lab)}", expect=[0] * ranks)
    for line in read_stats(run):
        assert 0 < line["data/waiting"] < 1
        assert "skipped/images" not in line
    return run


@contextmanager
def copied(lab: Lab, name: str) -> Iterator[tuple[Path, list[str]]]:
    """A copy of the set to be spoilt, and the settings of a run on it."""
    copy = lab.folder / f"{name}-data"
    shutil.copytree(small_shards(lab), copy)
    yield copy, [*SETTINGS, f"data.path={copy}"]
    shutil.rmtree(copy)


def repair(lab: Lab, copy: Path) -> None:
    shutil.copytree(small_shards(lab), copy, dirs_exist_ok=True)


def assert_skipped(lab: Lab, run: Path, skipped: dict[str, int]) -> None:
    """The run has finished without these images: this many of each stream, counted in its lines;
    nothing else has another place."""
    assert sum(line.get("skipped/images", 0) for line in lines(run)) == sum(skipped.values())
    expected = checkpoint.find(unbroken(lab, 1) / "checkpoints").state["data"]
    for stream, count in skipped.items():
        place = expected["streams"][stream]
        expected["streams"][stream] = {
            **place,
            "position": place["position"] + count,
            "skipped": count,
        }
    step = checkpoint.find(run / "checkpoints")
    assert step.images == 96
    assert step.state["data"] == expected


def assert_stopped(said: str, *parts: str, ranks: int = 1) -> None:
    """Each rank ends with the same line."""
    last = [line for line in said.splitlines() if line.startswith("fasttrain: ")]
    assert len(last) == ranks, said[-3000:]
    assert len(set(last)) == 1, last
    assert "Traceback" not in said
    assert last[0].endswith("the same command resumes the run"), last
    for part in parts:
        assert part in last[0], last[0]


def shard_goes_bad(lab: Lab, name: str, spoil: Callable[[Path], None], message: str) -> None:
    run = lab.new_run(name)
    with copied(lab, name) as (copy, settings):
        shard = copy / "shard-000084.tar"
        said = lab.train(run, *settings, inject=lambda: patch_step(nth(1, lambda: spoil(shard))))
    assert said.count("warning: skipped: ") == 1
    assert f"skipped: {shard} {message}" in said
    assert_skipped(lab, run, {"0": 16})


@fault(
    "data",
    "a shard cut in half while the run trains",
    "its 16 images are skipped and counted, no other; the run finishes",
)
def shard_cut_while_training(lab: Lab) -> None:
    shard_goes_bad(lab, "cut-shard", cut, "has 20480 bytes, its index says 40960")


@fault(
    "data",
    "a bit flipped in a shard while the run trains",
    "its 16 images are skipped and counted, no other; the run finishes",
)
def shard_flipped_while_training(lab: Lab) -> None:
    shard_goes_bad(lab, "flip-shard", flip, "does not have the SHA-256 of its index")


@fault(
    "data",
    "two damaged images in a shard with the right hash",
    "the two are skipped and counted, no other; the run finishes",
)
def bad_images(lab: Lab) -> None:
    run = lab.new_run("bad-images")
    with copied(lab, "bad-images") as (copy, settings):
        damage_images(copy, 84, 2, 9)
        said = lab.train(run, *settings)
    assert said.count("shard-000084.tar: ") == said.count("is a damaged PNG image") == 2
    assert_skipped(lab, run, {"0": 2})


def too_many(lab: Lab, name: str, shard: int, ranks: int) -> None:
    """One bad image more than allowed, in the fourth iteration."""
    run = lab.new_run(name)
    with copied(lab, name) as (copy, settings):
        settings.append("data.max_skipped=1")
        damage_images(copy, shard, 9, 10)
        said = lab.train(run, *settings, expect=[2] * ranks)
        assert_stopped(said, f"{copy}/shard-{shard:06d}.tar: ", "damaged PNG", ranks=ranks)
        assert intact(run) == [48]
        repair(lab, copy)
        lab.train(run, *settings, expect=[0] * ranks)
    assert_same(unbroken(lab, ranks), run)


@fault("data", "one damaged image more than `data.max_skipped`", STOPS + SAME)
def too_many_bad_images(lab: Lab) -> None:
    too_many(lab, "too-many", 84, 1)


@fault("data", "the same on rank 1 of two", "both ranks: " + STOPS + SAME)
def too_many_on_rank_1(lab: Lab) -> None:
    too_many(lab, "too-many-1", 64, 2)


@fault(
    "data",
    "a damaged image on each of two ranks, one allowed in all",
    "both ranks: a checkpoint, status 2, one line; with two allowed one process finishes the run",
)
def too_many_together(lab: Lab) -> None:
    run = lab.new_run("together")
    with copied(lab, "together") as (copy, settings):
        damage_images(copy, 84, 9)
        damage_images(copy, 64, 9)
        said = lab.train(run, *settings, "data.max_skipped=1", expect=[2, 2])
        assert_stopped(said, "cannot be read, over all processes: 2", ranks=2)
        assert intact(run) == [48]
        lab.train(run, *settings, "data.max_skipped=2")
    assert_skipped(lab, run, {"0": 1, "1": 1})


def serve(folder: Path, port: int) -> subprocess.Popen[bytes]:
    """A process, so that its socket is in none that is forked here."""
    where = ["--bind", "127.0.0.1", "--directory", str(folder)]
    server = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port), *where],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_for(listens)
    return server


@fault(
    "data",
    "the set's HTTP server killed while the run trains",
    "a checkpoint, status 75, one line; with it back " + SAME,
)
def server_gone(lab: Lab) -> None:
    run, port = lab.new_run("server"), free_port()
    settings = [*SETTINGS, f"data.path=http://127.0.0.1:{port}", "data.max_skipped=0"]
    settings += [f"data.cache={lab.folder}/server-cache", "data.attempts=2", "data.timeout=5"]
    server = serve(small_shards(lab), port)
    kill = nth(1, lambda: os.kill(server.pid, signal.SIGKILL))
    try:
        said = lab.train(run, *settings, inject=lambda: patch_step(kill), expect=[75])
        assert server.wait() == KILLED
        assert_stopped(said, f"cannot read http://127.0.0.1:{port}/shard-", "(2 attempts)")
        assert intact(run) in ([32], [64])  # shards that were fetched ahead are still read
        server = serve(small_shards(lab), port)
        lab.train(run, *settings)
    finally:
        server.kill()
        server.wait()
    assert_same(unbroken(lab, 1), run)  # which reads the folder


@fault(
    "data",
    "SIGKILL to one of two reader processes",
    "others are started; the run ends bit-identical to an unbroken one without readers",
)
def reader_killed(lab: Lab) -> None:
    run = lab.new_run("reader")

    def kill() -> None:
        reader: Any = multiprocessing.active_children()[0]
        os.kill(reader.pid, signal.SIGKILL)

    settings = [*SETTINGS, f"data.path={small_shards(lab)}", "data.workers=2"]
    said = lab.train(run, *settings, inject=lambda: patch_step(nth(2, kill)))
    assert said.count("a process that reads") == 1
    assert_same(unbroken(lab, 1), run)
