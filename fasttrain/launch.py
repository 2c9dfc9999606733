"""`fasttrain launch`: a thin parent around DeepSpeed's launcher, which starts a process for each
GPU of this machine or of the hosts in a hostfile.

    fasttrain launch --hostfile hosts --max-restarts 3 -- finetune imagenet64-d2o-f

What it adds: settings are checked before anything is started; SIGTERM, SIGUSR1 or Ctrl-C reach the
training processes on all hosts (DeepSpeed's own launcher kills them), which write a checkpoint and
end; a job that breaks is started again, from its last good checkpoint; and whatever is left of the
job on this machine when the launcher ends is killed.

The way to the processes is the run directory, which they share: touching its stop file asks the
run to stop at the end of the iteration. Exit status: that of the job (`fasttrain.cli`).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fasttrain.config import load_settings
from fasttrain.errors import UserError
from fasttrain.lock import ask_to_stop, wait_until_free
from fasttrain.settings import FinetuneSettings, PretrainSettings, RunSettings

__all__ = ["Hosts", "launch"]

MISTAKE, STOPPED = 2, 85
"""Statuses after which starting again is no use, or not wanted."""
LET_GO = 60.0
"""Seconds that the processes of a job that broke have to let go of the run directory."""
KINDS: dict[str, type[RunSettings]] = {"finetune": FinetuneSettings, "pretrain": PretrainSettings}


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """Where the processes run, in the terms of the `deepspeed` command; None leaves it to that."""

    hostfile: Path | None = None
    nodes: int | None = None
    gpus: int | None = None
    master_addr: str | None = None
    master_port: int | None = None

    def options(self) -> list[str]:
        """For `deepspeed`; unless a port is given, one that is free now: the last may linger."""
        port = self.master_port or free_port()
        values = {
            "--hostfile": self.hostfile,
            "--num_nodes": self.nodes,
            "--num_gpus": self.gpus,
            "--master_addr": self.master_addr,
            "--master_port": port,
        }
        return [f"{name}={value}" for name, value in values.items() if value is not None]


def launch(
    command: Sequence[str], hosts: Hosts, *, max_restarts: int = 0, patience: float = 600
) -> int:
    """Run `fasttrain COMMAND` in a process for each GPU; the exit status.

    command: `finetune` or `pretrain`, a recipe and overrides.
    max_restarts: how often a job that broke is started again.
    patience: seconds that a job has to stop when asked to; then it is killed.

    Raises UserError when the command or its settings are wrong.
    """
    if len(command) < 2 or command[0] not in KINDS:
        raise UserError("write what to launch after --: fasttrain launch -- finetune RECIPE ...")
    settings = load_settings(command[1], command[2:], KINDS[command[0]])
    job = Job(settings.run, patience)
    previous = {n: signal.signal(n, job.note) for n in (*job.STOP, signal.SIGINT)}
    try:
        for restarts in range(max_restarts + 1):
            status = job.run(
                [*hosts.options(), "--no_local_rank", "--module", "fasttrain"], command
            )
            if status in (0, MISTAKE, STOPPED) or job.asked or restarts == max_restarts:
                return status
            print(
                f"fasttrain: the job ended with status {status}; starting it again from its last "
                f"good checkpoint ({restarts + 1} of {max_restarts})",
                file=sys.stderr,
                flush=True,
            )
            wait_until_free(settings.run, LET_GO)  # what is left of it may still be ending
        return status
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Job:
    """One run of DeepSpeed's launcher after another, and the wish that it stop."""

    STOP = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self, run: Path, patience: float) -> None:
        self.path, self.patience = run, patience
        self.asked = 0

    def note(self, number: int, frame: Any) -> None:
        self.asked += 1

    def run(self, options: Sequence[str], command: Sequence[str]) -> int:
        """Exit status of `deepspeed OPTIONS COMMAND`; nothing of it is left on this machine."""
        launcher = [sys.executable, "-m", "deepspeed.launcher.runner", *options, *command]
        child = subprocess.Popen(launcher, start_new_session=True)
        since = None
        try:
            while child.poll() is None:
                if self.asked:
                    since = since or time.monotonic()
                    self._ask()
                    if self.asked > 2 or time.monotonic() - since > self.patience:
                        break
                time.sleep(0.5)
        finally:
            _kill(child)
        status = child.wait()
        return 128 - status if status < 0 else status

    def _ask(self) -> None:
        """Again and again: a run that is only just starting does not look at what came before."""
        with suppress(OSError, UserError):  # it has not made its directory yet
            ask_to_stop(self.path)


def _kill(child: subprocess.Popen[bytes]) -> None:
    """The launcher, and the session that it leads."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def free_port() -> int:
    """A TCP port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])
