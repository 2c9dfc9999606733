"""What one process cannot do is said by all of them, in a line that names its host."""

from __future__ import annotations

import errno
import json
import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fasttrain.system.errors import UserError
from fasttrain.system.processes import World, start
from fasttrain_data.errors import VerificationError
from tests.faults.child import free_port
from tests.ranks import all_end, be_rank, on_ranks

HOSTS = ("gpu01", "gpu02")
WARM = ("torch._dynamo",)


def caught(work: Callable[[], object]) -> list[str]:
    """Type and line of its error."""
    try:
        work()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return []


def told(tmp_path: Path) -> list[Any]:
    return [json.loads((tmp_path / host).read_text()) for host in HOSTS]


def test_an_error_of_one_process_is_raised_by_all(tmp_path: Path) -> None:
    def work(world: World) -> None:
        host = HOSTS[world.rank]
        platform.node = lambda: host

        def failing(*errors: Exception | None) -> list[str]:
            """By rank."""
            own = errors[world.rank]

            def act() -> None:
                with world.agreed():
                    if own is not None:
                        raise own

            return caught(act)

        def on_main(error: Exception) -> list[str]:
            def act() -> None:
                raise error

            return caught(lambda: world.on_main(act))

        full = OSError(errno.ENOSPC, "No space left on device", "/data")
        found = {
            "mistake": failing(None, UserError("no weights at /w")),
            "disk": failing(full, None),
            "everywhere": failing(UserError("no data"), UserError("no data")),
            "two": failing(UserError("no data"), UserError("no model")),
            "bug": failing(None, KeyError("x")),
            "main": on_main(KeyError("x")),
            "data": on_main(VerificationError(["a.tar is cut", "b.tar is missing"])),
            "nothing": failing(None, None),
        }
        assert world.totals([1.0]) == [2.0]  # nobody is in another collective
        (tmp_path / host).write_text(json.dumps(found))

    on_ranks(2, work, tmp_path, warm=WARM)
    first, second = told(tmp_path)
    assert first.pop("bug") == [
        "PeerError",
        "gpu02: a process ended with KeyError: 'x'; its traceback is beside this",
    ]
    assert second.pop("bug") == first.pop("main") == ["KeyError", "'x'"]
    assert second.pop("main") == [
        "PeerError",
        "a process ended with KeyError: 'x'; its traceback is beside this",
    ]
    assert first.pop("data") == ["VerificationError", "a.tar is cut (and 1 more problems)"]
    assert second.pop("data") == ["DataError", "a.tar is cut (and 1 more problems)"]
    assert (
        first
        == second
        == {
            "mistake": ["UserError", "gpu02: no weights at /w"],
            "disk": ["OSError", "[Errno 28] gpu01: No space left on device: '/data'"],
            "everywhere": ["UserError", "no data"],
            "two": ["UserError", "gpu01: no data"],
            "nothing": [],
        }
    )


def test_a_host_without_a_gpu_is_named_before_the_others_wait_for_it(tmp_path: Path) -> None:
    """gloo there and NCCL elsewhere would wait for each other."""
    port = free_port()

    def work(rank: int) -> None:
        be_rank(rank, 2, port)
        platform.node = lambda: HOSTS[rank]
        if rank == 0:
            torch.cuda.is_available = lambda: True
            torch.cuda.device_count = lambda: 1
            torch.cuda.set_device = lambda device: None
        (tmp_path / HOSTS[rank]).write_text(json.dumps(caught(start)))

    all_end([partial(work, rank) for rank in range(2)], tmp_path, warm=WARM)
    first, second = told(tmp_path)
    assert first == second
    assert first[0] == "UserError"
    assert first[1].startswith("processes on gpu02 see no GPU, those on gpu01 do: look at nvidia-")
