"""Rank, world size and the few collectives that training needs; the only file that calls
torch.distributed (DeepSpeed uses the process group that `start` creates).

    world = start()
    total = world.sum(losses)           # the same on every rank
"""

from __future__ import annotations

import datetime
import importlib
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as c10d
from torch.distributed.rendezvous import rendezvous

from fasttrain.system.agreeing import Agreeing
from fasttrain.system.connecting import connecting, limit_connecting
from fasttrain.system.errors import UserError
from fasttrain.system.grouping import groups
from fasttrain.system.heap import keep_memory
from fasttrain.system.placement import own_gpu, place, some_without_gpu
from fasttrain.system.switches import exact_float32

__all__ = [
    "ONE_PROCESS",
    "World",
    "lost_contact",
    "set_timeout",
    "start",
    "stop",
]


@dataclass(frozen=True)
class World(Agreeing):
    """This process and the other launched ones."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run directory."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all ranks of a tensor of any shape; in place when there is more than one."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def totals(self, numbers: Sequence[float]) -> list[float]:
        """Sums over all ranks of a few numbers on the host; the host waits for the GPU once, and
        not at all with one process."""
        own = torch.tensor(numbers, dtype=torch.float64, pin_memory=self._sends_from_gpu)
        if self._sends_from_gpu:
            own = own.to(self.device, non_blocking=True)
        return self.sum(own).tolist()

    @property
    def _sends_from_gpu(self) -> bool:
        return self.size > 1 and self.device.type == "cuda"

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

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        if self.size == 1:
            return flag
        return self.totals([float(flag)])[0] > 0

    def rows(self, part: torch.Tensor) -> torch.Tensor:
        """Every rank's rows [n, ...] of one tensor, concatenated in rank order, on the CPU of every
        rank; n may differ."""
        if self.size == 1:
            return part.cpu()
        counts = self.gather(len(part))
        shape = (max(counts), *part.shape[1:])
        sent = torch.zeros(shape, dtype=part.dtype, device=self.device)
        sent[: len(part)] = part
        received = self._from_all(sent)
        return torch.cat([r[:n].cpu() for r, n in zip(received, counts, strict=True)])

    def _from_all(self, sent: torch.Tensor) -> list[torch.Tensor]:
        """Every rank's tensor of one shape, in rank order."""
        if self.size == 1:
            return [sent]
        received = [torch.empty_like(sent) for _ in range(self.size)]
        dist.all_gather(received, sent)
        return received

    def share(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Rank 0's named tensors, dense and on its device, on every rank's device in the same
        layout. The argument of other ranks is ignored."""
        if self.size == 1:
            return dict(tensors)
        layouts = self.from_main(
            {name: (t.shape, t.stride(), t.dtype) for name, t in tensors.items()}
        )
        shared = {
            name: tensors[name].detach()
            if self.is_main
            else torch.empty_strided(shape, stride, dtype=dtype, device=self.device)
            for name, (shape, stride, dtype) in layouts.items()
        }
        # In bytes: not every backend knows every dtype.
        flat = [t.as_strided((t.numel(),), (1,)).view(torch.uint8) for t in shared.values()]
        lengths = [t.numel() for t in flat]
        for begin, end in groups(lengths):
            sent = torch.cat(flat[begin:end])
            dist.broadcast(sent, src=0)
            if not self.is_main:
                torch._foreach_copy_(flat[begin:end], sent.split(lengths[begin:end]))
        return shared

    def add_up(
        self, fragments: Sequence[tuple[int, torch.Tensor]], sizes: list[int]
    ) -> list[torch.Tensor]:
        """Float32 tensors [size] on the CPU of rank 0, an empty list elsewhere; each is the sum of
        all ranks' fragments of it: the index of the first value, and the values [n]."""
        whole: list[torch.Tensor] = []
        for begin, end in groups(sizes):
            flat = torch.zeros(sum(sizes[begin:end]), device=self.device)
            held = zip(flat.split(sizes[begin:end]), fragments[begin:end], strict=True)
            for part, (first, values) in held:
                part[first : first + values.numel()] = values
            if self.size > 1:
                dist.reduce(flat, dst=0)
            if self.is_main:
                whole += flat.cpu().split(sizes[begin:end])
        return whole

    def assemble(self, parts: Sequence[torch.Tensor], sizes: Sequence[int]) -> list[torch.Tensor]:
        """Full flat tensors on the CPU of rank 0, an empty list elsewhere, from every rank's parts:
        rank r has the values from r * ceil(n / W) on, ceil(n / W) of them or fewer at the end.

        sizes: n of each. Sent in groups of at most `AT_ONCE` values (`grouping`).
        """
        whole: list[torch.Tensor] = []
        for begin, end in groups(sizes, [part.dtype for part in parts]):
            whole += self._assemble(parts[begin:end], sizes[begin:end])
        return whole

    def _assemble(self, parts: Sequence[torch.Tensor], sizes: Sequence[int]) -> list[torch.Tensor]:
        each = [-(-size // self.size) for size in sizes]
        padded = [
            torch.nn.functional.pad(part.reshape(-1), (0, length - part.numel()))
            for part, length in zip(parts, each, strict=True)
        ]
        received = self._from_all(torch.cat(padded).to(self.device))
        if not self.is_main:
            return []
        columns = torch.stack(received).cpu().split(each, dim=1)
        return [c.reshape(-1)[:size] for c, size in zip(columns, sizes, strict=True)]

    def block_sum(self, count: int) -> Callable[[torch.Tensor], None]:
        """A function that sums a dense tensor in place over `count` consecutive ranks including
        this one; `count` divides the world size. Every rank must call this, with the same count."""
        if count not in _BLOCKS:
            first = self.rank - self.rank % count
            with connecting(dist.distributed_c10d.default_pg_timeout.total_seconds() / 60):
                group = dist.new_group(range(first, first + count), use_local_synchronization=True)
                dist.all_reduce(torch.zeros(1, device=self.device), group=group)  # as in `start`
            _BLOCKS[count] = group
        group = _BLOCKS[count]
        return lambda values: dist.all_reduce(values, group=group)


_BLOCKS: dict[int, Any] = {}
"""This rank's process groups of consecutive ranks, by size."""

ONE_PROCESS = World(rank=0, size=1, device=torch.device("cpu"))


def start(
    *,
    force_group: bool = False,
    timeout_minutes: float = 30,
    overdue: Callable[[], object] | None = None,
) -> World:
    """Join the processes named by RANK, WORLD_SIZE and LOCAL_RANK (torchrun and the deepspeed
    launcher set them) or by SLURM's variables (srun); one process without them.

    force_group: create a process group for a single process too, which DeepSpeed needs.
    timeout_minutes: how long this process waits for the others, here and in each collective.
    overdue: called in another thread when this one still waits after that time (`connecting`); it
        must end the process.

    Raises UserError when the variables are not valid numbers, or only some processes see a GPU.
    """
    exact_float32()
    keep_memory()
    rank, size = place()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        local = own_gpu(torch.cuda.device_count())
        os.environ["LOCAL_RANK"] = str(local)  # DeepSpeed takes it for the number of its GPU
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    world = World(rank=rank, size=size, device=device)
    if (size > 1 or force_group) and not dist.is_initialized():
        # Imported later, it would keep the group, and gloo's threads with it, beyond `stop`: a
        # thread that releases a tensor while the interpreter ends aborts the process.
        importlib.import_module("torch._dynamo")

        limit = datetime.timedelta(minutes=timeout_minutes)
        # DeepSpeed creates groups without setting their timeout.
        for default in ("default_pg_timeout", "default_pg_nccl_timeout"):
            setattr(dist.distributed_c10d, default, limit)
        limit_connecting(overdue if size > 1 else None)
        with connecting(timeout_minutes):
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                timeout=limit,
                rank=rank,
                world_size=size,
                store=_meet(world, limit) if size > 1 else c10d.HashStore(),
            )
            world.any(False)  # connect now: NCCL connects at its first use
    return world


def _meet(world: World, limit: datetime.timedelta) -> c10d.Store:
    """The store of all processes, after each has told whether it has a GPU: those that have none
    would wait in one backend, and the others in another. Raises UserError on every process."""
    store, _, _ = next(rendezvous("env://", world.rank, world.size, timeout=limit))
    store.set_timeout(limit)
    everybody = range(world.size)
    store.set(f"device/{world.rank}", f"{world.device.type} {platform.node()}")
    if world.is_main:
        told = [store.get(f"device/{rank}").decode() for rank in everybody]
        store.set("refused", some_without_gpu(told))
    refused = store.get("refused").decode()
    if refused:
        store.set(f"read/{world.rank}", "")
        if world.is_main:  # the store ends with it
            store.wait([f"read/{rank}" for rank in everybody], limit)
        raise UserError(refused)
    return c10d.PrefixStore("default_pg", store)


def set_timeout(minutes: float) -> None:
    """Set the timeout of the collectives of all groups: the groups that DeepSpeed creates would
    have torch's default of 10 or 30 minutes, whatever the first group has."""
    for group in list(dist.distributed_c10d._world.pg_map):
        dist.distributed_c10d._set_pg_timeout(datetime.timedelta(minutes=minutes), group)


def lost_contact(error: BaseException) -> bool:
    """Whether an error of a collective means that another process is gone or does not answer."""
    text = str(error)
    if isinstance(error, dist.DistError):  # also of NCCL's refusals, like two processes of one GPU
        return "ncclInvalid" not in text
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("gloo", "Connection closed by peer", "Connection reset by peer")
    )


def stop() -> None:
    """Leave the process group, if there is one; a later `start` may create another."""
    _BLOCKS.clear()
    if dist.is_initialized():
        # DeepSpeed keeps its groups, and so gloo's threads: wait until they release the last
        # tensors, because a release while the interpreter ends would abort the process.
        time.sleep(0.1)
    backend = sys.modules.get("deepspeed.comm")
    if backend is not None and backend.is_initialized():
        backend.destroy_process_group()  # and drop the groups that DeepSpeed keeps by name
    elif dist.is_initialized():
        dist.destroy_process_group()
    limit_connecting(None)
