"""`Run.read`: every process gets its share of a batch or none does, what is passed over is counted,
and a run that is stopped goes on at the same image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.stats import read_stats
from fasttrain.data import Batch, ImageStream
from fasttrain.data.order import Cursor
from fasttrain.settings import PretrainSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.errors import PeerError, Stopped, Unavailable, UserError
from fasttrain.system.processes import World
from fasttrain.training.run.run import Run
from tests.data.batches import values
from tests.data.damage import damage_images

BATCH = 4
ALONE = World(rank=0, size=1, device=torch.device("cpu"))


class WithAnother(World):
    """Rank 0 of two, of which the other says each time what `others` has next: images passed over
    so far and by this batch, and what is wrong with it. Its place in the stream is `place`, if that
    is not this one's."""

    others: Iterator[tuple[int, int, str | Exception]]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape == (4,):
            skipped, new, self.__dict__["problem"] = next(self.others)
            tensor += tensor.new_tensor([skipped, new, new, bool(self.__dict__["problem"])])
        return tensor

    def gather(self, value: Any) -> list[Any]:
        if isinstance(value, dict) and 0 in value:  # cursors
            return [value, self.__dict__.get("place", value)]
        problem = self.__dict__.get("problem")
        if problem and isinstance(problem, str):
            problem = UserError(problem)
        return [value, (problem or None, "")] if isinstance(value, tuple) else [value]

    def any(self, flag: bool) -> bool:
        return flag

    def from_main(self, value: Any) -> Any:
        return value


def beside(*others: tuple[int, int, str | Exception]) -> World:
    world = WithAnother(rank=0, size=2, device=torch.device("cpu"))
    world.__dict__["others"] = iter(others)
    return world


@pytest.fixture
def spoilt(make_set: Callable[..., Path]) -> Path:
    """32 images of two classes in four shards, two of the second shard's damaged."""
    path = make_set(counts=[16, 16], per_shard=8)
    damage_images(path, 1, 2, 3)
    return path


@contextmanager
def running(folder: Path, data: Path, limit: int, world: World = ALONE) -> Iterator[Any]:
    changes = [f"run={folder}", f"data.path={data}", f"batch={BATCH}", "images=1000"]
    changes += [f"report_every={BATCH}", "checkpoint.every=1000", f"data.max_skipped={limit}"]
    run = Run(load_settings("digits-edm", changes, PretrainSettings), world)
    stream = ImageStream(data, batch=BATCH, streams=1, seed=0, window=8, max_skipped=limit)
    run.resume(stream)
    with run:
        yield run, stream
    run.close()


def train(run: Run, stream: ImageStream, count: int) -> list[list[int]]:
    found = []
    for _ in range(count):
        found.append(values(run.read(stream)))
        run.advance(BATCH)
    return found


def saved(folder: Path) -> list[int]:
    return [step.images for step in checkpoint.steps(folder / "checkpoints")]


def unspoilt_order(data: Path) -> list[list[int]]:
    stream = ImageStream(data, batch=BATCH, streams=1, seed=0, window=8, max_skipped=9)
    return [values(next(stream)) for _ in range(7)]


def skips(data: Path) -> list[int]:
    """How many images are passed over in each batch."""
    stream = ImageStream(data, batch=BATCH, streams=1, seed=0, window=8, max_skipped=9)
    totals = [0, *(stream.skipped for _ in islice(stream, 7))]
    return [after - before for before, after in pairwise(totals)]


def test_processes_that_read_one_stream_apart_stop_at_the_batch_before(
    spoilt: Path, tmp_path: Path
) -> None:
    """One could not read what the other could: from there on their images would be others."""
    bad = next(place for place, count in enumerate(skips(spoilt)) if count)
    world = beside(*[(0, 0, "")] * 9)
    with running(tmp_path / "run", spoilt, limit=4, world=world) as (run, stream):
        train(run, stream, bad)
        world.__dict__["place"] = {0: Cursor(0, BATCH * (bad + 1))}
        with pytest.raises(UserError, match=r"not every process can read what .* reads: .*000001"):
            run.read(stream)
    assert saved(tmp_path / "run") == [BATCH * bad]
    del world.__dict__["place"]
    with running(tmp_path / "run", spoilt, limit=4, world=world) as (run, stream):
        assert train(run, stream, 1) == [unspoilt_order(spoilt)[bad]]


def test_what_was_passed_over_is_counted_and_said_once(
    spoilt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(tmp_path / "run", spoilt, limit=4) as (run, stream):
        found = train(run, stream, 15)  # two epochs of 30 images
        assert (stream.skipped, stream.faults) == (4, [])
    assert found[:7] == unspoilt_order(spoilt)
    assert len({value for batch in found for value in batch}) == 30
    counts = [line.get("skipped/images", 0) for line in read_stats(tmp_path / "run")]
    assert len(counts) == 15
    assert sum(counts) == 4
    said = capsys.readouterr().err
    assert said.count("run: warning: skipped: ") == said.count("is a damaged PNG image") == 2


def test_one_too_many_stops_with_a_checkpoint_that_goes_on(spoilt: Path, tmp_path: Path) -> None:
    order = unspoilt_order(spoilt)
    with running(tmp_path / "run", spoilt, limit=1) as (run, stream):
        with pytest.raises(UserError, match=r"damaged PNG .*raise data.max_skipped=1") as caught:
            train(run, stream, 7)
        images = run.images
    assert "\n" not in str(caught.value)
    assert 0 < images < 28
    assert saved(tmp_path / "run") == [images]
    with running(tmp_path / "run", spoilt, limit=2) as (run, stream):
        assert run.images == images
        assert train(run, stream, 7 - images // BATCH) == order[images // BATCH :]


def test_a_budget_below_what_was_used_up_stops_at_the_next(spoilt: Path, tmp_path: Path) -> None:
    with running(tmp_path / "run", spoilt, limit=2) as (run, stream):
        train(run, stream, 7)
        run._do({"save"})
    with running(tmp_path / "run", spoilt, limit=0) as (run, stream):
        assert stream.skipped == 2
        with pytest.raises(UserError, match="damaged PNG"):
            train(run, stream, 8)
        assert stream.skipped == 2
        assert saved(tmp_path / "run") == [28, run.images]


def test_nothing_is_saved_twice_or_before_anything_was_done(spoilt: Path, tmp_path: Path) -> None:
    damage_images(spoilt, 0, 0)
    damage_images(spoilt, 2, 0)
    damage_images(spoilt, 3, 0)
    with running(tmp_path / "run", spoilt, limit=0) as (run, stream):
        with pytest.raises(UserError):
            train(run, stream, 3)
        first = saved(tmp_path / "run")
        with pytest.raises(UserError):
            run.read(stream)
        assert saved(tmp_path / "run") == first == ([run.images] if run.images else [])


@pytest.mark.parametrize("mine", [Stopped, Unavailable, UserError])
@pytest.mark.parametrize("theirs", [Stopped, Unavailable, UserError])
def test_a_mistake_goes_before_a_wish_and_that_before_a_fault(
    shards: Path, tmp_path: Path, mine: type[Exception], theirs: type[Exception]
) -> None:
    """All processes end with the same."""

    class Failing(ImageStream):
        def __next__(self) -> Batch:
            raise mine("mine")

    kinds = [UserError, Stopped, Unavailable]
    expected = min(mine, theirs, key=kinds.index)
    world = beside((0, 0, theirs("theirs")))
    stream = Failing(shards, batch=BATCH, streams=1, seed=0)
    with running(tmp_path / "run", shards, 0, world) as (run, _), pytest.raises(expected) as caught:
        run.read(stream)
    assert type(caught.value) is expected
    assert saved(tmp_path / "run") == []


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ((0, 0, "cannot read shard 9"), "^cannot read shard 9; fix it"),
        (
            (5, 1, ""),
            r"damaged PNG .*\(images that cannot be read, over all processes: [67]\); fix",
        ),
        (
            (0, 0, Unavailable("cannot read set/a.tar: Stale file handle (5 attempts)")),
            r"^cannot read set/a.tar: Stale .*\); the same command resumes the run$",
        ),
        ((0, 0, Stopped("")), r"run: stopped at \d+ images; the same command resumes it$"),
    ],
)
def test_when_another_process_cannot_this_one_gives_its_share_back(
    spoilt: Path, tmp_path: Path, other: tuple[int, int, str | Exception], message: str
) -> None:
    kind = type(other[2]) if isinstance(other[2], Exception) else UserError
    order = unspoilt_order(spoilt)
    at = skips(spoilt).index(2)  # a batch in which this process passes over images itself
    world = beside(*[(0, 0, "")] * at, other)
    with running(tmp_path / "run", spoilt, limit=5, world=world) as (run, stream):
        assert train(run, stream, at) == order[:at]
        before = stream.state_dict()
        with pytest.raises(kind, match=message):
            run.read(stream)
        assert stream.state_dict() == before
    assert saved(tmp_path / "run") == ([BATCH * at] if at else [])
    with running(tmp_path / "run", spoilt, limit=5) as (run, stream):
        assert train(run, stream, 7 - at) == order[at:]


def test_what_waited_for_good_steps_is_done_when_all_are_asked_to_stop(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by one process, whose `advance` is asked: no later iteration does it."""
    done: list[set[str]] = []
    world = beside((0, 0, ""), (0, 0, Stopped("")))
    with running(tmp_path / "run", shards, 0, world) as (run, stream):
        monkeypatch.setattr(run, "_do", done.append)
        run.schedule.waiting.add("draw")
        run.read(stream)
        run.tried("denoiser", False)
        run.advance(BATCH)
        with pytest.raises(Stopped):
            run.read(stream)
    assert done == [{"report"}, {"save", "report", "draw"}]


def test_waiting_is_the_share_of_the_time_that_reading_took(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(
        "fasttrain.training.run.reading.time", SimpleNamespace(monotonic=lambda: now)
    )

    class Slow(ImageStream):
        def __next__(self) -> Batch:
            nonlocal now
            now += 3
            return super().__next__()

    with running(tmp_path / "run", shards, limit=0) as (run, _):
        stream = Slow(shards, batch=BATCH, streams=1, seed=0)
        for seconds in (1, 9, 0):
            run.read(stream)
            now += seconds
            run.advance(BATCH)
        run._do({"save", "report"})  # no time has gone by
    waiting = [line.get("data/waiting") for line in read_stats(tmp_path / "run")]
    assert waiting == [0.75, 0.25, 1.0]


def test_what_nobody_expects_ends_all_processes(shards: Path, tmp_path: Path) -> None:
    """Not only the one that shows its traceback: the others would wait for it."""

    class Failing(ImageStream):
        def __next__(self) -> Batch:
            raise ZeroDivisionError("by nothing")

    asked: list[object] = []
    world = beside((0, 0, ""), (0, 0, PeerError("a process ended with KeyError")))
    gather = world.gather
    world.__dict__["gather"] = lambda value: asked.append(value) or gather(value)
    with running(tmp_path / "run", shards, 0, world) as (run, stream):
        asked.clear()
        with pytest.raises(ZeroDivisionError):
            run.read(Failing(shards, batch=BATCH, streams=1, seed=0))
        ((told, _),) = asked
        assert isinstance(told, PeerError)
        with pytest.raises(PeerError, match="a process ended with KeyError"):
            run.read(stream)
