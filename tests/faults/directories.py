"""Run directories: two commands in one, locks and wishes to stop of other hosts, and what others
may have put there."""

from __future__ import annotations

import http.server
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fasttrain.checkpoints import lock
from fasttrain.checkpoints.lock import Lock
from fasttrain.checkpoints.stats import read_stats
from tests.faults.child import command
from tests.faults.damaged import SKIPPED, newest
from tests.faults.killed import SAME
from tests.faults.lab import Lab, assert_same, fault, intact, reached, slowly, wait_for


def said_by(lab: Lab, name: str, *arguments: object) -> tuple[int, str]:
    """Exit status of any `fasttrain` command, and what it said."""
    child = command(lab.folder / f"{name}.log", *map(str, arguments))
    return child.wait(), child.said()


@fault(
    "two commands",
    "a second command with other settings in the run directory of one that is training",
    "the second ends with status 2 and has written nothing; the first ends bit-identical to an "
    "unbroken run",
)
def second_command_of_another_run(lab: Lab) -> None:
    run = lab.new_run("another")
    (first,) = lab.start(run, inject=slowly)
    wait_for(reached(run, 16))
    before = {name: (run / name).read_bytes() for name in ("config.yaml", "lock", "audit.json")}
    first.log = first.log.rename(first.log.with_suffix(".first"))
    said = lab.train(run, "seed=5", "batch=32", expect=[2])
    assert "is being trained by" in said or "has other settings" in said
    assert {name: (run / name).read_bytes() for name in before} == before
    assert first.wait() == 0, first.said()
    assert_same(lab.reference(1, 1), run)


@contextmanager
def holder(run: Path, name: str) -> Iterator[None]:
    """A process that has the lock, and whose lock file says another name."""
    ready, done = os.pipe()
    pid = os.fork()
    if not pid:
        kept = Lock(run)
        kept.sign()
        (run / "lock").write_text(name)
        os.write(done, b"1")
        time.sleep(300)
        os._exit(kept.asked_to_stop())
    os.read(ready, 1)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(done)


@fault(
    "two commands",
    "the lock still held when the process that took it is gone",
    "status 75 after a wait; without the lock " + SAME,
)
def lock_of_a_dead_process(lab: Lab) -> None:
    run = lab.half_done("dead-holder")
    soon = lambda: setattr(lock, "PATIENCE", 1.0)  # noqa: E731
    with holder(run, "process 77 on a-host-that-died\n"):
        said = lab.train(run, inject=soon, expect=[75])
    assert "is in use by process 77 on a-host-that-died, which has shown no sign of life" in said
    assert "Traceback" not in said
    lab.assert_ends_like_unbroken(run)


@fault(
    "stop",
    "a stop file left from before, with a time in the future",
    "not obeyed; " + SAME,
)
def old_wish_to_stop(lab: Lab) -> None:
    run = lab.half_done("old-stop")
    (run / "stop").touch()
    os.utime(run / "stop", (4e9, 4e9))
    lab.assert_ends_like_unbroken(run)


@fault(
    "stop",
    "a stop file made while it trains by a host whose clock is a day behind",
    "checkpoint at the iteration's end, status 85; " + SAME,
)
def wish_of_another_clock(lab: Lab) -> None:
    run = lab.new_run("slow-clock")
    (child,) = lab.start(run, inject=slowly)
    wait_for(reached(run, 32))
    (run / "stop.new").touch()
    os.utime(run / "stop.new", (1, 1))
    (run / "stop.new").rename(run / "stop")
    assert child.wait() == 85, child.said()
    assert 32 < intact(run)[-1] < 96
    lab.assert_ends_like_unbroken(run)


@fault("damage", "a flipped bit in a key of the newest checkpoint's manifest", SKIPPED)
def flipped_manifest(lab: Lab) -> None:
    run = lab.half_done("flip-manifest")
    path = newest(run) / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"bytes"', b'"cytes"', 1))
    said = lab.assert_ends_like_unbroken(run)
    assert "step-0000000064 is skipped: manifest.json is corrupt" in said


@fault(
    "damage",
    "a flipped bit in the second line of stats.jsonl",
    "the line is skipped and named, those after it are kept; the run finishes",
)
def flipped_stats(lab: Lab) -> None:
    run = lab.half_done("flip-stats")
    content = bytearray((run / "stats.jsonl").read_bytes())
    content[content.index(b"\n") + 40] ^= 1
    (run / "stats.jsonl").write_bytes(content)
    said = lab.train(run)
    assert "stats.jsonl: damaged lines are skipped: 2" in said
    assert [line["images"] for line in read_stats(run)] == [16, 48, 64, 80, 96]


@fault(
    "another's files",
    "links at the names of files that training writes in its run directory",
    "replaced, and their targets are untouched; " + SAME,
)
def links_at_files(lab: Lab) -> None:
    run = lab.half_done("links")
    victim = lab.folder / "victim"
    victim.write_text("precious")
    names = ["audit.json", "memory.json", "stop", "step-0000000096.tmp"]
    for name in [*names, *(f"{name}.tmp" for name in ("config.yaml", "stats.jsonl"))]:
        path = run / "checkpoints" / name if name.startswith("step") else run / name
        path.unlink(missing_ok=True)
        path.symlink_to(victim)
    lab.assert_ends_like_unbroken(run)
    assert victim.read_text() == "precious"


@fault(
    "another's files",
    "a link at the name of a folder, or of the lock, of a run directory",
    "status 2, one line that names it; nothing is written through it",
)
def links_at_folders(lab: Lab) -> None:
    for name in ("samples", "checkpoints", "tensorboard", "lock"):
        run, outside = lab.new_run(f"link-{name}"), lab.folder / f"outside-{name}"
        run.mkdir()
        outside.mkdir()
        (run / name).symlink_to(outside)
        said = lab.train(run, expect=[2])
        assert said.count("fasttrain: error: ") == 1
        assert str(run / name) in said
        assert not list(outside.iterdir())


def planted(path: Path, content: str | None) -> None:
    path.unlink(missing_ok=True)
    if content is None:
        os.mkfifo(path)
    else:
        path.write_text(content)


BOMB = "a: &a [x, x]\n" + "".join(
    f"{one}: &{one} [*{before}, *{before}]\n"
    for before, one in zip("abcdefghijklmnopqrstuvwxy", "bcdefghijklmnopqrstuvwxyz", strict=True)
)


@fault(
    "another's files",
    "pipes, JSON 100,000 deep, a YAML bomb in a downloaded run: report, evaluate, export, sample",
    "status 2, one line that names the file",
)
def hostile_content(lab: Lab) -> None:
    places: dict[str, Callable[[Path], Path]] = {
        "config.yaml": lambda run: run / "config.yaml",
        "state.json": lambda run: newest(run) / "state.json",
    }
    for name, content in (("config.yaml", None), ("config.yaml", BOMB), ("state.json", None)):
        run = lab.half_done("downloaded")
        planted(places[name](run), content)
        if name == "state.json":
            os.unlink(newest(run).with_name("step-0000000032") / "state.json")
        for verb in ("report", "evaluate", "export", "sample"):
            status, said = said_by(lab, "hostile", verb, run)
            assert status == 2, said
            assert said.count("fasttrain: error: ") == 1, said
            assert name in said
            assert "Traceback" not in said
    run = lab.half_done("downloaded")
    planted(run / "evaluation.json", "[" * 100_000)
    status, said = said_by(lab, "hostile", "report", run)
    assert status == 0, said
    assert "evaluation.json cannot be read." in (run / "report.html").read_text()


@fault(
    "another's files",
    "a downloaded run whose data are at an address: report, evaluate",
    "the address is not asked; report leaves the pictures out, evaluate ends with status 2 and "
    "names --trust-urls",
)
def address_in_a_run(lab: Lab) -> None:
    asked: list[str] = []

    class Counting(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    run = lab.half_done("address")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Counting)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/set"
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(lab.data), url))
    assert url in (run / "config.yaml").read_text()
    status, said = said_by(lab, "address", "report", run)
    assert status == 0, said
    assert "a URL in a run is not opened: add --trust-urls" in (run / "report.html").read_text()
    status, said = said_by(lab, "address", "evaluate", run)
    assert status == 2, said
    assert f"{url!a}, and a URL in a run is not opened" in said
    assert not asked
    server.shutdown()
    server.server_close()


@fault(
    "another's files",
    "a checkpoint whose manifest is right and whose state is of other kinds",
    "status 2, one line that names the state",
)
def state_of_other_kinds(lab: Lab) -> None:
    from fasttrain.system.files import sha256

    run = lab.half_done("other-kinds")
    path = newest(run)
    for state in ({"images": "32"}, {"base": []}, {"images": 64, "base": None}, {"data": [1]}):
        (path / "state.json").write_text(json.dumps(state))
        manifest = json.loads((path / "manifest.json").read_text())
        size = (path / "state.json").stat().st_size
        entry = {"bytes": size, "sha256": sha256(path / "state.json")}
        (path / "manifest.json").write_text(json.dumps(manifest | {"state.json": entry}))
        said = lab.train(run, expect=[2])
        assert said.count("fasttrain: error: ") == 1
        assert "state.json" in said
        assert "Traceback" not in said
