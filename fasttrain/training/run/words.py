"""What a run prints at its start and at its end.

for line in opening(settings, world, run.precision): ...
for line in ending(settings, run.images, run.stop_rule): ...
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import torch

from fasttrain.models.build import activation_dtype
from fasttrain.settings import RunSettings
from fasttrain.settings.trainings import training_of
from fasttrain.system.processes import World
from fasttrain.training.run.stop_rule import StopRule

__all__ = ["ending", "interrupted", "opening"]


def opening(settings: RunSettings, world: World, measured: str | None = None) -> list[str]:
    """Device, precision, processes and data; a warning when the machine's GPU is not used.

    measured: the dtype that a measurement chose for `precision: auto`, if one did.
    """
    device = world.device
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        threads = torch.get_num_threads()
        where = f"CPU, {threads} threads" if threads > 1 else "CPU, 1 thread"
    dtype = measured if settings.precision == "auto" else None
    dtype = dtype or str(activation_dtype(settings, device)).removeprefix("torch.")
    processes = f"{world.size} processes" if world.size > 1 else "1 process"
    lines = [f"{where}; {dtype}; {processes}; data {settings.data.path}"]
    if settings.log.wandb == "offline":
        sync = f"`wandb sync {settings.run}/wandb/offline-run-*`"
        lines.append(f"Weights & Biases: offline, {sync} uploads it")
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


def interrupted(images: int | None) -> str:
    """What is left of a run that ended without a checkpoint; `images`: of its newest one."""
    if images is None:
        return "stopped at once, before the first checkpoint: the same command starts from 0 images"
    return f"stopped at once; the same command resumes from the checkpoint at {images:,} images"


def ending(settings: RunSettings, images: int, stop_rule: StopRule) -> list[str]:
    """What a finished run has, and what can be done with it."""
    training = training_of(settings)
    run = shlex.quote(str(settings.run))
    early = images < settings.images
    which = " --checkpoint best" if early else ""
    commands = [
        f"fasttrain sample {run} --out grid.png{which}",
        f"fasttrain evaluate {run}{which}",
    ]
    if not training.generator:
        commands.append(f"fasttrain finetune RECIPE init={run}")
    longer = f"images={2 * images}"
    if early:
        longer = f"stop.patience={2 * stop_rule.since}"
    return [
        *([f"stopped early: {stop_rule.sentence}"] if early else []),
        f"{images:,} images seen: the {training.network} is in {settings.run}/checkpoints",
        *(f"next: {command}" for command in commands),
        f"to train longer, run the same command with {longer}",
    ]
