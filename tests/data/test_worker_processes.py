"""Reader processes that are killed, fail, are closed or lose their parent: nothing is lost, nothing
comes twice, and none is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import webdataset

from fasttrain.data import ImageStream
from fasttrain.data.readers import RESTARTS
from fasttrain.system.errors import Unavailable
from tests.data.servers import wait_for
from tests.data.workers import OPTIONS, alive, pids, told

pytestmark = pytest.mark.usefixtures("no_process_is_left")


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
