"""What every process settles before it computes anything."""

from __future__ import annotations

import torch

from fasttrain.distributed import start


def test_float32_is_float32_from_the_start_on() -> None:
    """torch lets convolutions of float32 round their inputs to TF32 on a GPU unless told."""
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = True
    start()
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
