"""Processes forked from a test: what is imported here once need not be imported in each.

child = forked(folder / "log", lambda: train(run))
assert child.wait() == 0, child.said()
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

__all__ = ["WARM", "WITH_DEEPSPEED", "Child", "command", "do_and_exit", "forked"]
__all__ += ["free_port", "warm_up"]

WARM = (
    "torch._dynamo",
    "torch.utils.tensorboard",
    "fasttrain.cli.app",
    "fasttrain.training.finetune",
    "fasttrain.training.pretrain",
)
WITH_DEEPSPEED = (
    "deepspeed",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.ops.op_builder.all_ops",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.runtime.zero.stage3",
    "fasttrain.training.engines.zero",
    "setuptools",
)
"""And what DeepSpeed imports when it builds an engine: half the time of a run of two ranks."""


@dataclass
class Child:
    """A forked process."""

    pid: int
    log: Path
    status: int | None = None

    def wait(self, seconds: float = 240) -> int:
        """Exit status, negative for a signal; after `seconds` it is killed, which is a failure."""
        until = time.monotonic() + seconds
        while not self.ended() and time.monotonic() < until:
            time.sleep(0.02)
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            raise AssertionError(f"a process did not end within {seconds} s: {self.said()[-2000:]}")
        return self.status

    def ended(self) -> bool:
        if self.status is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status is not None

    def said(self) -> str:
        return self.log.read_text(errors="replace")


def forked(log: Path, work: Callable[[], object]) -> Child:
    """Fork a process that does `work` with its output in a file. It ends with the status of
    SystemExit, with 1 after another exception, whose traceback it prints, else with 0."""
    sys.stdout.flush()

    def logged() -> None:
        gc.freeze()  # it does not go through what it has inherited, which DeepSpeed asks it to
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        work()

    pid = os.fork()
    if not pid:
        do_and_exit(logged)
    return Child(pid, log)


def do_and_exit(work: Callable[[], object]) -> NoReturn:
    """What a forked process does, on its own streams instead of those of pytest, and its end, as
    `forked` says."""
    status = 1
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, closefd=False) for n in (1, 2))
    try:
        work()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def command(
    log: Path,
    *arguments: str,
    rank: int = 0,
    ranks: int = 1,
    port: int = 0,
    before: Callable[[], object] = lambda: None,
) -> Child:
    """Fork a `fasttrain` command, as one of so many ranks; `before` runs ahead of it."""
    warm_up()

    def work() -> None:
        from fasttrain.cli.app import main

        if ranks > 1:
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "DS_ACCELERATOR": "cpu",
            }
        before()
        sys.argv = ["fasttrain", *arguments]
        main()

    return forked(log, work)


def warm_up(names: Iterable[str] = WARM) -> None:
    """Import what each forked command would import again."""
    for name in names:
        importlib.import_module(name)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
