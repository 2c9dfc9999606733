"""Switches of cuBLAS and cuDNN. They are the process's, so they also count in the threads that run
backward passes; on a CPU none has an effect.

    with tf32(False):  # inputs of float32 products and convolutions keep all their bits
        exact = network(x)
    tune_convolutions(True, device)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["exact_float32", "tf32", "tune_convolutions"]


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Context in which a GPU may round the inputs of float32 products and convolutions to 11 bits,
    or may not."""
    switches: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = allowed
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def exact_float32() -> None:
    """Turn TF32 off in this process: torch otherwise rounds the inputs of its convolutions to TF32
    on a GPU, which would also affect R1, which is defined in float32."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def tune_convolutions(wanted: bool, device: torch.device) -> None:
    """Whether cuDNN times its algorithms at the first call of each shape, for shapes that come
    again; on a GPU."""
    torch.backends.cudnn.benchmark = wanted and device.type == "cuda"
