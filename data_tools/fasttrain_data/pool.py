"""The same work on many shards, on several processes, results in order; or some work in one.

    for result in in_order(work, count, workers):
        ...

Processes are forked, so `work` and what it refers to is not copied; it gets a number and returns
something small.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import signal
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from fasttrain_data.errors import DataError

__all__ = ["apart", "bound", "die_with_parent", "in_order", "processes"]

T = TypeVar("T")
PR_SET_PDEATHSIG = 1

_work: Callable[[int], Any] | None = None


def processes(wanted: int | None, images: int) -> int:
    """How many processes to use: as many as there are cores, unless there is little to do."""
    if wanted is not None:
        return wanted
    return 1 if images < 5000 else len(os.sched_getaffinity(0))


def in_order(work: Callable[[int], T], count: int, workers: int) -> Generator[T, None, None]:
    """Yield work(0), work(1), ... work(count - 1). With one worker, in this process.

    Raises what `work` raises, and DataError when a process was killed. With several workers, any
    end but the last result kills what is under way: close the iterator.
    """
    if workers <= 1 or count <= 1:
        yield from map(work, range(count))
        return
    global _work
    _work = work
    pool = ProcessPoolExecutor(
        min(workers, count),
        mp_context=multiprocessing.get_context("fork"),
        initializer=die_with_parent,
        initargs=(os.getpid(),),
    )
    try:
        waiting: deque[Future[T]] = deque()
        for number in range(count):
            waiting.append(pool.submit(_call, number))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise DataError(
            "a worker process was killed, perhaps for want of memory: run the same command again, "
            "perhaps with fewer --workers"
        ) from error
    except BaseException:
        # Work under way would be waited for; what it has not finished does not count. After a
        # process that could not be started the others would wait for work for ever.
        for process in list(pool._processes.values()):
            process.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        _work = None


def apart(work: Callable[[], T], doing: str) -> T:
    """The value of `work()`, which a forked process computes: its limits and its death are its own.

    Raises the DataError that `work` raises, and one when the process dies.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(work, sender, os.getpid()), daemon=True)
    process.start()
    sender.close()
    try:
        problem, value = receiver.recv()
    except EOFError:
        process.join()
        problem, value = f"{doing} ended with status {process.exitcode}: is it damaged?", None
    finally:
        receiver.close()
    process.join()
    if problem:
        raise DataError(problem)
    return value


def bound(*, memory: int, file: int | None = None) -> None:
    """Bound what this process, one of `apart`, may allocate from here on, and the files that it
    writes, in bytes."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for limit, most in ((resource.RLIMIT_AS, used + memory), (resource.RLIMIT_FSIZE, file)):
        _, hard = resource.getrlimit(limit)
        if most is not None:
            resource.setrlimit(limit, (most if hard < 0 else min(most, hard), hard))


def _send(work: Callable[[], Any], sender: Connection, parent: int) -> None:
    die_with_parent(parent)
    try:
        answer = ("", work())
    except DataError as error:
        answer = (str(error), None)
    sender.send(answer)


def _call(number: int) -> Any:
    assert _work is not None
    return _work(number)


def die_with_parent(parent: int) -> None:
    """For the start of a process: it would wait for work for ever when its parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
