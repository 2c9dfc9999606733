"""What a run says of itself at its start and at its end.

for line in opening(settings, world): ...
print(ending(run))
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from fasttrain.models.build import activation_dtype
from fasttrain.settings import FinetuneSettings, RunSettings
from fasttrain.system.processes import World

__all__ = ["ending", "opening"]


def opening(settings: RunSettings, world: World) -> list[str]:
    """Device, precision, processes and data; and that a GPU is there which is not used."""
    device = world.device
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        where = f"CPU, {torch.get_num_threads()} threads"
    dtype = str(activation_dtype(settings, device)).removeprefix("torch.")
    processes = "1 process" if world.size == 1 else f"{world.size} processes"
    lines = [f"{where}; {dtype}; {processes}; data {settings.data.path}"]
    if device.type == "cpu" and (why := _idle_gpu()):
        lines.append(f"warning: training on the CPU, although this machine has a GPU: {why}")
    return lines


def _idle_gpu(devices: Path = Path("/dev")) -> str:
    """Why a GPU of this machine is not used, or nothing when it has none."""
    if not any((devices / name).exists() for name in ("nvidia0", "kfd")):
        return ""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return "CUDA_VISIBLE_DEVICES is empty"
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        return "DS_ACCELERATOR is cpu"
    if not torch.backends.cuda.is_built():
        return f"torch {torch.__version__} is built without CUDA"
    return "torch cannot use it; `fasttrain doctor` says more"


def ending(settings: RunSettings, images: int) -> list[str]:
    """What a finished run has, and what can be done with it."""
    run = settings.run
    tuned = isinstance(settings, FinetuneSettings)
    what = "the one-step generator" if tuned else "the diffusion model"
    following = [f"fasttrain sample {run} --out grid.png", f"fasttrain evaluate {run}"]
    if not tuned:
        following.append(f"fasttrain finetune RECIPE init={run}")
    more = f"with images={2 * images} the same command goes on"
    return [
        f"{images:,} images seen: {what} is in {run}/checkpoints; {more}",
        f"next: {' | '.join(following)}",
    ]
