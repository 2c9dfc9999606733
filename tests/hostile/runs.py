"""What is planted in a run directory, the commands that meet it, and the line that they end in."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fasttrain.checkpoints import checkpoint
from fasttrain.cli.app import main
from fasttrain.system.files import sha256

DEEP = "[" * 200_000
BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
MERGED = "a0: &a0 {k: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40)
)


@contextmanager
def alarm(seconds: int) -> Iterator[None]:
    """A pipe that is opened waits for ever: the test fails instead."""

    def late(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def command(verb: str, made: Path, run: Path) -> list[str]:
    tune = ["finetune", str(made / "recipe.yaml")]
    return {
        "init": [*tune, f"run={run.parent / 'new'}", f"init={run}"],
        "resume": [*tune, f"run={run}"],
        "sample": ["sample", str(run), "--seeds", "0", "--out", str(run.parent / "grid.png")],
        "export": ["export", str(run), "--out", str(run.parent / "out.safetensors")],
    }.get(verb, [verb, str(run)])


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """The one line of a command that ends with status 2."""
    before, sys.argv = sys.argv, ["fasttrain", *arguments]
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = before
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("fasttrain: error: ")]
    assert ended.value.code == 2, said
    assert len(lines) == 1, said
    assert lines[0].isprintable()
    assert len(lines[0]) < 900
    return lines[0]


def the_step(run: Path) -> Path:
    return checkpoint.steps(run / "checkpoints")[-1].path


def state_of(content: str) -> Callable[[Path], None]:
    """Plant a state that its manifest describes: only what it says can be wrong."""

    def plant(run: Path) -> None:
        step = the_step(run)
        (step / "state.json").write_text(content)
        manifest = json.loads((step / "manifest.json").read_text())
        entry = {"bytes": len(content), "sha256": sha256(step / "state.json")}
        (step / "manifest.json").write_text(json.dumps(manifest | {"state.json": entry}))

    return plant


def content_of(name: str, content: str) -> Callable[[Path], None]:
    return lambda run: void((run / name).write_text(content))


def pipe_at(name: str) -> Callable[[Path], None]:
    def plant(run: Path) -> None:
        path = the_step(run) / name if name in ("state.json", "manifest.json") else run / name
        path.unlink(missing_ok=True)
        os.mkfifo(path)

    return plant


def vast(name: str) -> Callable[[Path], None]:
    """A file of a terabyte, all holes."""

    def plant(run: Path) -> None:
        with (run / name).open("w") as file:
            os.truncate(file.fileno(), 1 << 40)

    return plant


def void(_: object) -> None: ...


def main_ends_well() -> None:
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
