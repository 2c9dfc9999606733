"""A rank that dies, freezes or never comes while the others start up: they end within the time that
`engine.timeout_minutes` gives, with status 75 and one line, whatever they were waiting in."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from fasttrain.system import processes as distributed
from tests.faults.lab import KILLED, Lab, fault, patch

GROUP = "a rank gone at the start"
PROMISE = "the other ends with status 75 and one line within the time, 3 s here; nothing is written"
SECONDS = 3.0


def die(*_: Any, **__: Any) -> None:
    os._exit(17)


def freeze(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def after(owner: Any, name: str, act: Callable[[], None]) -> None:
    """From now on, in this process, `act` runs when `owner.name` has returned."""
    original = getattr(owner, name)

    def patched(*args: Any, **kwargs: Any) -> Any:
        value = original(*args, **kwargs)
        act()
        return value

    setattr(owner, name, patched)


def ends(lab: Lab, name: str, inject: Callable[[], None], *, gone: int = 1) -> None:
    """Two ranks, one of which `inject` takes away; what becomes of the other."""
    run = lab.new_run(name)
    children = lab.start(
        run, f"engine.timeout_minutes={SECONDS / 60}", ranks=2, inject=inject, on=[gone]
    )
    began = time.monotonic()
    left, lost = children[1 - gone], children[gone]
    try:
        assert left.wait(60) == 75, left.said()
    finally:
        if lost.status is None:
            os.kill(lost.pid, signal.SIGKILL)
    assert time.monotonic() - began < 3 * SECONDS + 20
    assert lost.wait() in (17, KILLED)
    said = [line for line in left.said().splitlines() if line.startswith("fasttrain: ")]
    assert len(said) == 1, left.said()
    assert f"error: rank {1 - gone} has lost contact with another process" in said[0]
    assert "resumes from the last checkpoint" in said[0]
    assert "Traceback" not in left.said()
    assert not (run / "checkpoints").exists() or not list((run / "checkpoints").iterdir())


@fault(GROUP, "rank 1 of two is never started", PROMISE)
def never_comes(lab: Lab) -> None:
    ends(lab, "never-1", die)


@fault(GROUP, "rank 0 of two, whom the other must reach, is never started", PROMISE)
def first_never_comes(lab: Lab) -> None:
    ends(lab, "never-0", die, gone=0)


@fault(GROUP, "rank 1 of two dies when it has met rank 0, before their group is made", PROMISE)
def dies_before_the_group(lab: Lab) -> None:
    inject = lambda: patch(dist.distributed_c10d, "_new_process_group_helper", die)  # noqa: E731
    ends(lab, "before-group", inject)


@fault(GROUP, "rank 0 of two dies there", PROMISE)
def first_dies_before_the_group(lab: Lab) -> None:
    inject = lambda: patch(dist.distributed_c10d, "_new_process_group_helper", die)  # noqa: E731
    ends(lab, "before-group-0", inject, gone=0)


@fault(GROUP, "rank 1 of two dies between the making of the group and its first use", PROMISE)
def dies_before_the_first_collective(lab: Lab) -> None:
    ends(lab, "before-first", lambda: after(dist, "init_process_group", die))


@fault(GROUP, "rank 1 of two freezes there (SIGSTOP)", PROMISE)
def freezes_before_the_first_collective(lab: Lab) -> None:
    ends(lab, "freezes-first", lambda: after(dist, "init_process_group", freeze))


@fault(
    GROUP,
    "rank 0 of two in a call that knows no time limit (NCCL's, while it connects)",
    "both end with status 75 and one line each within the time, 3 s here; nothing is written",
)
def connects_for_ever(lab: Lab) -> None:
    run = lab.new_run("for-ever")
    sleep = lambda: patch(distributed.World, "any", lambda *_: time.sleep(300))  # noqa: E731
    changes = f"engine.timeout_minutes={SECONDS / 60}"
    said = lab.train(run, changes, inject=sleep, on=[0], expect=[75, 75])
    assert "rank 0 has lost contact with another process" in said
    assert "(no connection within 0.05 minutes)" in said
    assert "rank 1 has lost contact with another process" in said
    assert not run.exists()


@fault(GROUP, "rank 1 of two dies in DeepSpeed's start, before its groups are made", PROMISE)
def dies_in_deepspeed(lab: Lab) -> None:
    import deepspeed

    ends(lab, "deepspeed", lambda: patch(deepspeed, "initialize", die))


@fault(GROUP, "rank 1 of two freezes there (SIGSTOP)", PROMISE)
def freezes_in_deepspeed(lab: Lab) -> None:
    import deepspeed

    ends(lab, "deepspeed-frozen", lambda: patch(deepspeed, "initialize", freeze))
