"""Several processes' collectives within one process: in threads, or, for what is not to run in
threads (Triton's interpreter), one after the other, again and again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from torch import Tensor

from fasttrain.discriminator.peers import Peers

__all__ = ["in_threads", "peers_of_threads", "replayed"]

T = TypeVar("T")


def peers_of_threads(size: int) -> list[Peers]:
    """Peers that `in_threads` can be called with, each from a thread of its own."""
    offered: dict[int, Tensor] = {}
    barrier = threading.Barrier(size, timeout=60)

    def sum_of(rank: int) -> Callable[[Tensor], None]:
        def add(values: Tensor) -> None:
            offered[rank] = values.detach().clone()
            barrier.wait()
            total = sum((offered[other] for other in range(1, size)), start=offered[0])
            barrier.wait()
            values.copy_(total)

        return add

    return [Peers(rank, size, sum_of(rank)) for rank in range(size)]


def in_threads(works: Sequence[Callable[[], T]]) -> list[T]:
    """What each gives, run side by side."""
    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result() for future in [pool.submit(work) for work in works]]


def replayed(size: int, work: Callable[[Peers], T]) -> list[T]:
    """What `work` gives on each of `size` processes: run again with the sums of one more collective
    known, until there are no more. It must do the same every time."""
    sums: list[Tensor] = []
    while True:
        offered: list[Tensor] = []
        results = [work(Peers(rank, size, _recalling(sums, offered, rank))) for rank in range(size)]
        assert len(offered) in (0, size), "some processes have more collectives than others"
        if not offered:
            return results
        sums.append(sum(offered[1:], start=offered[0]))


def _recalling(sums: Sequence[Tensor], offered: list[Tensor], rank: int) -> Callable[..., None]:
    """Gives the sums that are known, in order; offers what the first that is not known is of."""
    known: Iterator[Tensor] = iter(sums)

    def add(values: Tensor) -> None:
        total = next(known, None)
        if total is not None:
            values.copy_(total)
        elif len(offered) == rank:
            offered.append(values.clone())

    return add
