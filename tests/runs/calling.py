"""The `fasttrain` command inside the test's process."""

from __future__ import annotations

import sys

import pytest

from fasttrain.cli.app import main


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of `fasttrain ARGUMENTS`."""
    before = sys.argv
    sys.argv = ["fasttrain", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = before
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err
