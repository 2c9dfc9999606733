"""A process that fails alone on GPUs says why and ends, while NCCL would wait for the others."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from fasttrain.cli.processes import alone_or_together
from fasttrain.system import processes as distributed
from fasttrain.system.processes import World

SCRIPT = """
import time, torch
from fasttrain.cli import app, processes
from fasttrain.system import processes as distributed
from fasttrain.system.errors import Stopped, UserError

distributed.start = lambda **_: distributed.World(1, 2, torch.device("cuda"))
distributed.stop = lambda: time.sleep(600)  # as a group is left whose others wait in a collective

def command(**_):
    with processes.alone_or_together():
        raise {error}

app.app = command
app.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        ("UserError('no weights here')", 2, "fasttrain: error: no weights here"),
        ("torch.OutOfMemoryError('2 GiB')", 2, "not enough memory (2 GiB); set a smaller"),
        ("Stopped('with a checkpoint')", 85, "fasttrain: with a checkpoint"),
        ("ValueError('a fault')", 1, "ValueError: a fault"),
    ],
)
def test_it_ends_at_once_with_its_own_error(error: str, status: int, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(error=error)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, said in done.stderr) == (status, True), done.stderr


def test_a_lost_process_is_said_with_what_the_backend_knows_last(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """NCCL names the host and the cause in its last line, torch adds a stack of its C++."""

    def ended(status: int) -> None:
        raise SystemExit(status)

    def joined(**_: object) -> World:
        raise torch.distributed.DistBackendError(
            "NCCL error in: NCCLUtils.cpp:93, remote process exited, NCCL version 2.27.5\n"
            "ncclRemoteError: A call failed possibly due to a network error.\nLast error:\n"
            "socketProgress: Connection closed by remote peer gpu07<40000>\n"
            "Exception raised from check at NCCLUtils.cpp:93 (most recent call first):\nframe #0"
        )

    monkeypatch.setattr(distributed, "start", joined)
    monkeypatch.setattr("os._exit", ended)
    with pytest.raises(SystemExit, match="75"), alone_or_together():
        pass
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        "Last error: socketProgress: Connection closed by remote peer gpu07<40000>)"
    )
