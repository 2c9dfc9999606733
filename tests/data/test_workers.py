"""Reader processes change nothing: not a batch, not a cursor, not an error; and none is left."""

from __future__ import annotations

import multiprocessing.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset

from fasttrain.data import ImageStream
from fasttrain.data.readers import RESTARTS, Workers
from fasttrain.system.errors import Unavailable, UserError
from tests.data.damage import damage_images
from tests.data.servers import wait_for
from tests.data.test_image_stream import IMAGES, merged, values

OPTIONS: dict[str, Any] = {"batch": 12, "streams": 4, "seed": 9, "window": 5}


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    wait_for(lambda: not multiprocessing.active_children())


def pids(stream: ImageStream) -> list[int]:
    assert isinstance(stream._readers, Workers)
    return [process.pid for process in stream._readers.processes]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def told(stream: ImageStream, count: int) -> list[Any]:
    """All that there is to know of the next batches."""
    found = []
    for batch in islice(stream, count):
        assert batch.class_labels is not None
        labels = batch.class_labels.argmax(1).tolist()
        found.append((values(batch), labels, batch.index.tolist(), stream.state_dict()))
    return found


@pytest.mark.parametrize("resampled", [False, True])
@pytest.mark.parametrize("window", [1, 7, 512])
def test_workers_change_nothing(shards: Path, window: int, resampled: bool) -> None:
    """Over three epochs, also with more workers than streams."""
    options = {**OPTIONS, "window": window, "resampled": resampled}
    count = 3 * IMAGES // 12 + 2
    expected = told(ImageStream(shards, **options), count)
    assert expected[-1][3]["streams"]["0"]["epoch"] >= 2
    for workers in (1, 2, 3, 9):
        with closing(ImageStream(shards, workers=workers, **options)) as stream:
            assert told(stream, count) == expected
            assert len(pids(stream)) == min(workers, 4)


@pytest.mark.parametrize("resampled", [False, True])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (4, 2), (1, 4)])
def test_a_cursor_resumes_at_another_world_size(
    shards: Path, before: int, after: int, resampled: bool
) -> None:
    """Workers have read ahead of the cursor by then."""
    options = {**OPTIONS, "resampled": resampled}
    expected = [batch for batch, *_ in told(ImageStream(shards, **options), 12)]

    def world(size: int) -> list[ImageStream]:
        return [
            ImageStream(shards, rank=rank, world_size=size, workers=2, **options)
            for rank in range(size)
        ]

    first, second = world(before), world(after)
    for batch in expected[:7]:
        assert [value for rank in first for value in values(next(rank))] == batch
    for rank in second:
        rank.load_state_dict(merged(first))
    for batch in expected[7:]:
        assert [value for rank in second for value in values(next(rank))] == batch
    for rank in first + second:
        rank.close()


def test_a_killed_reader_loses_and_repeats_nothing(
    shards: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = told(ImageStream(shards, **OPTIONS), 14)
    with closing(ImageStream(shards, workers=2, **OPTIONS)) as stream:
        found = told(stream, 3)
        for kill, count in ((0, 4), (1, 6)):
            killed = pids(stream)
            os.kill(killed[kill], signal.SIGKILL)
            found += told(stream, count)
            assert not set(pids(stream)) & set(killed)  # what was read ahead was used up
        found += told(stream, 1)
    assert found == expected
    assert capfd.readouterr().err.count(f"a process that reads {shards} died; started again") == 2


def test_a_reader_that_dies_every_time_is_given_up_in_one_line(
    shards: Path, tmp_path: Path
) -> None:
    def die(sample: dict[str, Any]) -> dict[str, Any]:
        (tmp_path / str(os.getpid())).touch()
        os.kill(os.getpid(), signal.SIGKILL)
        return sample

    with closing(ImageStream(shards, workers=1, stages=[webdataset.map(die)], **OPTIONS)) as stream:
        with pytest.raises(Unavailable, match=r"died 4 consecutive times \(SIGKILL\)") as caught:
            next(stream)
        assert "\n" not in str(caught.value)
        assert f"the processes that read {shards}" in str(caught.value)
    assert len(list(tmp_path.iterdir())) == RESTARTS + 1


def test_an_error_of_a_users_stage_is_not_a_death(shards: Path) -> None:
    def wrong(sample: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("a mistake in the stage")

    stream = ImageStream(shards, workers=1, stages=[webdataset.map(wrong)], **OPTIONS)
    with closing(stream), pytest.raises(RuntimeError, match="a mistake in the stage"):
        next(stream)


def test_closing_leaves_no_process(shards: Path) -> None:
    stream = ImageStream(shards, workers=2, **OPTIONS)
    first = told(stream, 2)
    running = pids(stream)
    assert all(map(alive, running))
    stream.close()
    assert not any(map(alive, running))
    stream.close()
    rest = told(stream, 2)  # others are started, and go on
    assert first + rest == told(ImageStream(shards, **OPTIONS), 4)
    running = pids(stream)
    stream.load_state_dict(stream.state_dict())
    assert not any(map(alive, running))
    next(stream)
    running = pids(stream)
    del stream
    assert not any(map(alive, running))


PARENT = """
import os, sys
from fasttrain.data import ImageStream
stream = ImageStream(sys.argv[1], batch=4, streams=4, seed=0, workers=2)
next(stream)
print(*[process.pid for process in stream._readers.processes], flush=True)
{end}
"""


@pytest.mark.parametrize(
    ("end", "status"),
    [("os.kill(os.getpid(), 9)", -9), ("sys.exit(3)", 3), ("1 / 0", 1)],
)
def test_no_reader_outlives_its_parent(shards: Path, end: str, status: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PARENT.format(end=end), str(shards)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stderr
    readers = list(map(int, done.stdout.split()))
    assert len(readers) == 2
    wait_for(lambda: not any(map(alive, readers)), 3)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_all_of_a_batch_is_page_locked_when_asked_for(
    shards: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From other memory a GPU's copy would wait for all work before it. Without a GPU no page can
    be locked: what torch is asked for is looked at."""
    with closing(ImageStream(shards, workers=workers, **OPTIONS)) as stream:
        plain = told(stream, 3)
    locked: set[int] = set()

    def asking(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def made(*args: Any, pin_memory: bool = False, **more: Any) -> torch.Tensor:
            tensor = make(*args, **more)
            if pin_memory:
                locked.add(tensor.data_ptr())
            return tensor

        return made

    for name in ("empty", "zeros", "arange"):
        monkeypatch.setattr(torch, name, asking(getattr(torch, name)))
    with closing(ImageStream(shards, workers=workers, pin=True, **OPTIONS)) as stream:
        batch = next(stream)
    assert batch.class_labels is not None
    for tensor in (batch.images, batch.class_labels, batch.index):
        assert tensor.data_ptr() in locked
    with closing(ImageStream(shards, workers=workers, pin=True, **OPTIONS)) as stream:
        assert told(stream, 3) == plain


def test_streams_one_after_the_other_leave_nothing_behind(
    shards: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(4):  # the processes of the next one know nothing of the one before
        with closing(ImageStream(shards, workers=2, **OPTIONS)) as stream:
            told(stream, 1)
    assert "Exception" not in capfd.readouterr().err


def test_readers_heed_no_sigterm(shards: Path) -> None:
    """A launcher sends it to all; the main process still needs its images."""
    with closing(ImageStream(shards, workers=2, **OPTIONS)) as stream:
        found = told(stream, 1)
        running = pids(stream)
        for pid in running:
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGINT)
        found += told(stream, 12)
        assert pids(stream) == running
    assert found == told(ImageStream(shards, **OPTIONS), 13)


@pytest.fixture
def spoilt(make_set: Callable[..., Path]) -> Path:
    """Four shards of eight images; two in each of two shards are damaged."""
    path = make_set(counts=[16, 16], per_shard=8)
    for shard in (1, 2):
        damage_images(path, shard, 2, 3)
    return path


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 4])
def test_bad_images_are_the_same_for_readers(spoilt: Path, limit: int) -> None:
    """The same batches, counts and reasons, up to the same error at the same place."""
    options: dict[str, Any] = {"batch": 4, "streams": 2, "seed": 1, "window": 3}
    seen = []
    for workers in (0, 1, 2):
        with closing(ImageStream(spoilt, workers=workers, max_skipped=limit, **options)) as stream:
            found: list[Any] = []
            error = ""
            try:
                for _ in range(7 if limit == 4 else 9):  # 28 good ones in an epoch
                    found.append((*told(stream, 1), stream.skipped, list(stream.faults)))
            except UserError as problem:
                error = str(problem)
            seen.append((found, error, stream.state_dict()))
    assert seen[0] == seen[1] == seen[2]
    found, error, state = seen[0]
    assert "\n" not in error
    if limit < 4:  # an epoch has four
        assert " is a damaged PNG image" in error
        skipped = sum(place["skipped"] for place in state["streams"].values())
        assert skipped <= limit
    else:
        assert not error
        images = sorted(value for (batch, *_), *_ in found for value in batch)
        assert len(set(images)) == 28
        assert found[-1][1] == 4
        assert len(set(found[-1][2])) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_that_is_given_back_comes_again(spoilt: Path, workers: int) -> None:
    options: dict[str, Any] = {"batch": 4, "streams": 2, "seed": 1, "window": 3, "max_skipped": 4}
    expected = told(ImageStream(spoilt, **options), 7)
    with closing(ImageStream(spoilt, workers=workers, **options)) as stream:
        for batch in expected:
            before = stream.state_dict()
            assert told(stream, 1) == [batch]
            stream.give_back()
            assert stream.state_dict() == before
            assert told(stream, 1) == [batch]


def test_the_seed_of_resampled_streams(shards: Path) -> None:
    options = {**OPTIONS, "resampled": True, "workers": 2}
    orders = []
    for seed in (1, 1, 2):
        with closing(ImageStream(shards, **{**options, "seed": seed})) as stream:
            orders.append([batch for batch, *_ in told(stream, 10)])
    assert orders[0] == orders[1] != orders[2]


def test_resampled_streams_may_be_more_than_shards(make_set: Callable[..., Path]) -> None:
    path = make_set(counts=[6, 6], per_shard=6)
    options: dict[str, Any] = {"batch": 32, "streams": 16, "seed": 0, "resampled": True}
    with pytest.raises(UserError, match="12 images, fewer than the 16 streams"):
        ImageStream(path, **{**options, "resampled": False})
    with closing(ImageStream(path, workers=3, **options)) as stream:
        found = told(stream, 60)
    assert found == told(ImageStream(path, **options), 60)
    count = torch.bincount(torch.tensor([value for batch, *_ in found for value in batch]))
    assert len(count) == 12
    assert count.sum() == 60 * 32
    # 320 draws of one of two shards, each shard's images as often as the shard: 160 +- 4 * 9.
    assert count.min() > 120
    assert count.max() < 200
