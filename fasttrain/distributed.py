"""Rank, world size and the few collectives that training needs; the only file that calls
torch.distributed (DeepSpeed finds the process group that `start` made).

    world = start()
    mean = world.mean(losses)           # the same on every rank
"""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

__all__ = ["World", "exact_float32", "start", "stop"]

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among the launched ones."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run directory."""
        return self.rank == 0

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Mean over all ranks of a tensor of any shape; in place when there is more than one."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def gather(self, value: Any) -> list[Any]:
        """Every rank's picklable value, in rank order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_main(self, value: Any) -> Any:
        """Rank 0's picklable value, on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def on_main(self, work: Callable[[], T]) -> T:
        """The value of `work()`, run by rank 0 alone and given to every rank.

        What it raises (OSError, ValueError) is raised everywhere, so that no rank waits for one
        that has stopped.
        """
        value: T | None = None
        error: Exception | None = None
        if self.is_main:
            try:
                value = work()
            except (OSError, ValueError) as problem:
                error = problem
        value, error = self.from_main((value, error))
        if error is not None:
            raise error
        return value

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def start(*, force_group: bool = False, timeout_minutes: float = 60) -> World:
    """Join the processes named by RANK, WORLD_SIZE and LOCAL_RANK (torchrun and the deepspeed
    launcher set them); one process without them.

    force_group: make a process group of one process too, which DeepSpeed needs.
    """
    exact_float32()
    rank = int(os.environ.get("RANK", 0))
    size = int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if (size > 1 or force_group) and not dist.is_initialized():
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            timeout=datetime.timedelta(minutes=timeout_minutes),
            rank=rank,
            world_size=size,
            store=None if size > 1 else torch._C._distributed_c10d.HashStore(),
        )
    return World(rank=rank, size=size, device=device)


def exact_float32() -> None:
    """From now on float32 is float32 in this process: torch rounds the inputs of its convolutions
    to TF32 on a GPU otherwise, and R1, which is asked for in float32, would be of that."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def stop() -> None:
    """Leave the process group, if there is one; a later `start` may make another."""
    backend = sys.modules.get("deepspeed.comm")
    if backend is not None and backend.is_initialized():
        backend.destroy_process_group()  # and forget the groups that DeepSpeed keeps by name
    elif dist.is_initialized():
        dist.destroy_process_group()
