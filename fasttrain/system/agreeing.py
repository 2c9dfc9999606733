"""What processes do so that none waits, in a collective, for one that has failed.

with world.agreed():                    # an error of one is raised by all
    network = load(path)
digest = world.on_main(lambda: write(path))
"""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from fasttrain.system.errors import PeerError, for_others

__all__ = ["Agreeing"]

T = TypeVar("T")
SHARED = "_raised_by_every_process"


class Agreeing(ABC):
    """Errors of one process in all, by two collectives of `World`."""

    rank: int
    size: int

    @abstractmethod
    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank, on each."""

    @abstractmethod
    def from_main(self, value: Any) -> Any:
        """Rank 0's value, on each process."""

    def on_main(self, work: Callable[[], T]) -> T:
        """The value of `work()`, which only rank 0 runs, on every rank; its error, too."""
        value: T | None = None
        own: Exception | None = None
        if self.rank == 0:
            try:
                value = work()
            except Exception as error:
                own = error
        value, problem = self.from_main((value, None if own is None else for_others(own)))
        if problem is not None:
            raise _shared(own or problem)
        return value

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Context of work that every rank does for itself, without collectives, and that one alone
        may fail in: files that are missing on a host, no memory left. See `agree`."""
        problem = None
        try:
            yield
        except Exception as error:
            problem = error
        self.agree(problem)

    def agree(self, error: Exception | None) -> None:
        """Wait for every rank; if any has an error, raise that of the first one, naming its host if
        not every rank has the same. Every rank must call this."""
        if self.size == 1:
            if error is not None:
                raise error
            return
        other = None if error is None else for_others(error, platform.node())
        reports = self.gather(None if other is None else (str(error), other))
        failed = [report for report in reports if report is not None]
        if not failed:
            return
        alike = len(failed) == self.size and len({said for said, _ in failed}) == 1
        if error is not None and (alike or isinstance(other, PeerError)):
            raise _shared(error)
        raise _shared(failed[0][1]) from error

    def shared(self, error: Exception) -> bool:
        """Whether every rank raises this error, too, and so can do something about it together."""
        return self.size == 1 or getattr(error, SHARED, False)


def _shared(error: Exception) -> Exception:
    setattr(error, SHARED, True)
    return error
