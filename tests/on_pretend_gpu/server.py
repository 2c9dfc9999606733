"""A machine with two pretend GPUs that does what a test asks for.

The installation is for good and comes before torch, so it is not for the process of the tests. This
one has imported everything, and each request is run by forked children of it, one a rank, which
count as newly started. A request is a line of JSON on stdin, its answer one on stdout.

Operators are the reference ones: Triton's interpreter is too slow for a network.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tests import pretend_gpu

# isort: split

import torch

from tests.faults.child import WITH_DEEPSPEED

GPUS = 2
WARM = (
    *WITH_DEEPSPEED,
    "torch._dynamo",
    "torch.utils.tensorboard",
    "fasttrain.cli.app",
    "fasttrain.discriminator.class_means",
    "fasttrain.cli.doctor.examine",
    "fasttrain.evaluation.measure",
    "fasttrain.evaluation.summary",
    "fasttrain.models.export",
    "fasttrain.training.finetune",
    "fasttrain.training.pretrain",
    "fasttrain.analysis.profiling",
    "fasttrain.analysis.report.page",
    "fasttrain.sampling.sample",
)
"""What children do not import again."""


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what anything prints is no answer
    os.environ.setdefault("TRITON_INTERPRET", "1")
    pretend_gpu.install(gpus=GPUS)
    torch.set_num_threads(1)
    for name in WARM:
        importlib.import_module(name)
    from fasttrain_kernels import dispatch

    dispatch.HAVE_TRITON = False
    gc.collect()
    gc.freeze()  # children share what is here
    answers.write("ready\n")
    for line in sys.stdin:
        answers.write(json.dumps(answer(**json.loads(line))) + "\n")
    os._exit(0)  # nothing to put away


def answer(
    task: str, arguments: list[Any], ranks: int, seconds: float, folder: str, **variables: str
) -> list[dict[str, Any]]:
    """Run `module:function` with the arguments on every rank; what became of each: `status`, the
    returned `value`, what it `said`.

    variables: of the environment; `{rank}` in them is the rank.
    """
    started, port = [], free_port()
    for rank in range(ranks):
        place = Path(folder) / f"{task.partition(':')[2]}-{rank}"
        place.with_suffix(".json").unlink(missing_ok=True)
        pid = os.fork()
        if not pid:
            _be(rank, ranks, port, place, task, arguments, variables)
        started.append((pid, place))
    until = time.monotonic() + seconds
    return [_ended(pid, place, until) for pid, place in started]


def _be(
    rank: int,
    ranks: int,
    port: int,
    place: Path,
    task: str,
    arguments: list[Any],
    variables: dict[str, str],
) -> None:
    """A rank; does not return."""
    status = 1
    try:
        log = os.open(place.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if ranks > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= {name: text.format(rank=rank) for name, text in variables.items()}
        pretend_gpu.fresh()
        module, _, function = task.partition(":")
        value = getattr(importlib.import_module(module), function)(*arguments)
        place.with_suffix(".json").write_text(json.dumps(value))
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _ended(pid: int, place: Path, until: float) -> dict[str, Any]:
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            ended = os.waitpid(pid, 0)
            break
        time.sleep(0.01)
    value = place.with_suffix(".json")
    return {
        "status": os.waitstatus_to_exitcode(ended[1]),
        "value": json.loads(value.read_text()) if value.exists() else None,
        "said": place.with_suffix(".log").read_text(errors="replace"),
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
