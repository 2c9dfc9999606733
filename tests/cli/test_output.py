"""Output that nobody reads to its end, or that a disk has no room for."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable

import pytest

from fasttrain.cli import app
from fasttrain_data import cli as data_cli
from fasttrain_data.output import whole_output

MAINS = [
    (app.main, "fasttrain", ["models", "--json"]),
    (data_cli.main, "fasttrain-data", ["--help"]),
]


class Ended(Exception):
    """In the place of the process's end."""


class Output(io.StringIO):
    """Fails at once, or when it is flushed."""

    def __init__(self, number: int, at_once: bool) -> None:
        super().__init__()
        self.number, self.at_once = number, at_once

    def write(self, text: str) -> int:
        if self.at_once:
            self.flush()
        return len(text)

    def fileno(self) -> int:
        return os.open(os.devnull, os.O_WRONLY)

    def flush(self) -> None:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(("main", "name", "words"), MAINS)
def test_a_reader_that_has_enough(
    main: Callable[[], None],
    name: str,
    words: list[str],
    at_once: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def end(status: int) -> None:
        raise Ended(status)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(sys, "argv", [name, *words])
    monkeypatch.setattr(sys, "stdout", Output(errno.EPIPE, at_once))
    with pytest.raises(Ended, match="0"):
        main()


def test_names_that_a_terminal_has_no_letters_for(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    with whole_output():
        print("F\u00fcchse", flush=True)
    assert written.getvalue() == b"F\\xfcchse\n"


@pytest.mark.parametrize(("main", "name", "words"), MAINS)
def test_a_full_disk_is_one_line(
    main: Callable[[], None],
    name: str,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [name, *words])
    monkeypatch.setattr(sys, "stdout", Output(errno.ENOSPC, False))
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, sys.stdout) == (2, None)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{name}: ")
    assert "No space left on device" in line
