"""`fasttrain launch`: a thin parent around DeepSpeed's launcher, which starts a process for each
GPU of this machine or of the hosts in a hostfile.

    fasttrain launch --hostfile hosts --max-restarts 3 -- finetune imagenet64-d2o-f

It adds: settings, hosts and the number of processes are checked before anything is started;
SIGTERM, SIGUSR1 or Ctrl-C reach the training processes on all hosts (DeepSpeed's own launcher kills
them), which write a checkpoint and end; a job that fails is started again, from its last good
checkpoint, with `min_gpus` also on fewer hosts; processes of the job that are left on a host when
the launcher ends are killed; and the status is 0 only if the run is finished.

The launcher reaches the processes through the run directory, which they share: touching its stop
file asks the run to stop at the end of the iteration. Exit status: that of the job
(`fasttrain.cli.app`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.lock import ask_to_stop, wait_until_free
from fasttrain.cli.hosts import Hosts, TooFew
from fasttrain.cli.processes import MISTAKE, STOPPED, TRY_AGAIN
from fasttrain.settings import RunSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.settings.trainings import TRAININGS
from fasttrain.system.errors import UserError, is_machine_fault
from fasttrain.training.run.stop_rule import StopRule

__all__ = ["Hosts", "launch"]

LONGEST_PAUSE = 600
"""Longest time between two starts, in seconds."""
LET_GO = 60.0
"""Seconds to wait until the processes of a failed job release the run directory."""
KINDS = {task: training.schema for task, training in TRAININGS.items()}


def launch(
    command: Sequence[str],
    hosts: Hosts,
    *,
    max_restarts: int = 0,
    pause: float = 10,
    patience: float = 600,
) -> int:
    """Run `fasttrain COMMAND` in a process for each GPU; the exit status.

    command: `finetune`, `pretrain` or another training, a recipe and overrides.
    max_restarts: how often a failed job is started again without a newer checkpoint.
    pause: seconds before the first restart; doubled before each further one.
    patience: seconds that a job has to stop on request; then it is killed.

    Raises UserError when the command, its settings or the hosts are wrong.
    """
    if len(command) < 2 or command[0] not in KINDS:
        raise UserError("write the command after --: fasttrain launch -- finetune RECIPE ...")
    settings = load_settings(command[1], command[2:], KINDS[command[0]])
    hosts.check(settings.process_counts())
    job = Job(settings, patience)
    previous = {n: signal.signal(n, job.note) for n in (*job.STOP, signal.SIGINT)}
    try:
        return _see_through(job, command, hosts, max_restarts, pause)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _see_through(
    job: Job, command: Sequence[str], hosts: Hosts, max_restarts: int, pause: float
) -> int:
    """Start the job, again after failures, until it has ended; its status."""
    tries, before = 0, job.images()
    while True:
        status = _start(job, command, hosts)
        now = job.images()
        if status == 0 and not job.finished(now):
            _say(
                f"error: the job ended before it was finished: the last good checkpoint in "
                f"{job.settings.run} is of {now:,} images, not {job.settings.images:,}"
            )
            status = TRY_AGAIN
        if status in (0, MISTAKE, STOPPED) or job.asked:
            return status
        if now > before:
            tries, before = 0, now
        if tries == max_restarts:
            return status
        seconds = min(pause * 2**tries, LONGEST_PAUSE)
        tries += 1
        _say(
            f"the job ended with status {status}; starting it again in {seconds:g} s from its last "
            f"good checkpoint, of {now:,} images ({tries} of {max_restarts} without progress)"
        )
        job.rest(seconds)
        if job.asked:
            return status
        wait_until_free(job.settings.run, LET_GO)  # its last processes may still be ending


def _start(job: Job, command: Sequence[str], hosts: Hosts) -> int:
    """The job's status after one start on the hosts that answer; TRY_AGAIN if it cannot start."""
    try:
        slots = hosts.present(job.settings.process_counts())
        with tempfile.TemporaryDirectory(prefix="fasttrain-") as folder:
            port = hosts.port(slots)
            options = hosts.options(slots, port, Path(folder))
            options += ["--no_local_rank", "--module", "fasttrain"]
            status = job.run(options, hosts.words(slots, command))
            if status:
                hosts.clear(slots, port)
            return status
    except TooFew as problem:
        _say(f"error: {problem}")
    except OSError as problem:
        if not is_machine_fault(problem):
            raise
        _say(f"error: the job cannot be started: {problem}")
    return TRY_AGAIN


class Job:
    """Successive runs of DeepSpeed's launcher, and the request to stop."""

    STOP = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self, settings: RunSettings, patience: float) -> None:
        self.settings, self.patience = settings, patience
        self.asked = self.seen = 0

    def note(self, number: int, frame: Any) -> None:
        self.asked += 1

    def images(self) -> int:
        """The run's progress: images of its newest intact checkpoint, or the last known number
        while a disk or mount fails, which may also be the reason why the job failed."""
        try:
            step = checkpoint.newest(self.settings.run / "checkpoints")
        except OSError as error:
            if not is_machine_fault(error):
                raise
            _say(f"warning: cannot read the checkpoints in {self.settings.run}: {error.strerror}")
        else:
            self.seen = step.images if step else 0
        return self.seen

    def finished(self, images: int) -> bool:
        """Whether the run has seen all of its images, or its stop rule has ended it."""
        if images >= self.settings.images:
            return True
        step = checkpoint.newest(self.settings.run / "checkpoints")
        rule = StopRule(self.settings)
        rule.load(step.state.get("stop") if step else None)
        return rule.spent

    def rest(self, seconds: float) -> None:
        """Wait, at most until the job is asked to stop."""
        until = time.monotonic() + seconds
        while not self.asked and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, 0.5))

    def run(self, options: Sequence[str], command: Sequence[str]) -> int:
        """Exit status of `deepspeed OPTIONS COMMAND`; no process of it is left on this machine."""
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
        return _status(child.wait())

    def _ask(self) -> None:
        """Repeat the request: a run that is only just starting ignores earlier ones."""
        with suppress(OSError, UserError):  # its directory does not exist yet
            ask_to_stop(self.settings.run)


def _status(code: int) -> int:
    """A shell's status, 128 + N for a process that signal N ended: DeepSpeed ends with the -N of a
    training process, which the system turns into 256 - N. (255 is ssh's, for a lost host.)"""
    if code < 0:
        return 128 - code
    return 384 - code if 256 - signal.SIGSYS <= code < 255 else code


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Kill the launcher and its session."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)


def _say(line: str) -> None:
    print(f"fasttrain: {line}", file=sys.stderr, flush=True)
