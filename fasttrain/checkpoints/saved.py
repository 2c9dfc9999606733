"""A run at one of its checkpoints, opened and verified once, and handed on.

    saved = SavedRun.open(Path("runs/digits-d2o-f"), "best")
    saved.settings, saved.images, saved.origin
    saved.weights            # of the averaged model, whole
    saved.base               # of the model that fine-tuning began with: the run's own copy

Every file is hashed once, however often it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.checkpoint import Step
from fasttrain.checkpoints.origins import origin_of_state
from fasttrain.settings import FinetuneSettings, PretrainSettings
from fasttrain.settings.recipes import load_run_settings
from fasttrain.system.errors import UserError
from fasttrain.system.files import sha256
from fasttrain.system.tensors import read_tensors, write_tensors

__all__ = ["BASE", "SavedRun", "keep_base"]

BASE = "base.safetensors"
"""In the directory of a fine-tuning run."""


@dataclass(frozen=True)
class SavedRun:
    """What a run directory holds of its model at a checkpoint.

    Attributes:
        step: the checkpoint, which matched its manifest when the run was opened.
    """

    path: Path
    settings: PretrainSettings | FinetuneSettings
    step: Step

    @classmethod
    def open(cls, path: Path, which: str = "latest") -> SavedRun:
        """The run at a checkpoint: `latest`, `best` or a number of images.

        Raises UserError when this is no run directory, or has no such checkpoint intact, or one
        that says nothing of a run.
        """
        settings = load_run_settings(path)
        saved = cls(path, settings, checkpoint.find(path / "checkpoints", which))
        _ = saved.state
        return saved

    @property
    def images(self) -> int:
        """Images seen at the checkpoint."""
        return self.step.images

    @cached_property
    def state(self) -> dict[str, Any]:
        """What the checkpoint's `state.json` says."""
        return self.step.state

    @property
    def origin(self) -> dict[str, str]:
        """Where the weights came from, under the names of `origins.KEPT`."""
        return origin_of_state(self.state)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The averaged model's full named weights, read again each time. What its checkpoint does
        not hold is that of the base model, as it was used in training."""
        name = "generator" if self.settings.task == "finetune" else "network"
        trained = {
            key.removeprefix("module/"): value
            for key, value in self.step.tensors(name).items()
            if key.startswith("module/")
        }
        weights = trained | self.step.tensors("ema")
        if self.state.get("base"):
            dtype = getattr(torch, self.state["base"].get("frozen", "float32"))
            frozen = {n: w for n, w in self.base.items() if n not in trained}
            weights = {n: w.to(dtype).to(w.dtype) for n, w in frozen.items()} | weights
        return weights

    @property
    def base(self) -> dict[str, torch.Tensor]:
        """The model that fine-tuning began with, read again each time.

        Raises UserError when the run has none, or the file is not the one it began with.
        """
        return read_tensors(self.base_file)

    @cached_property
    def base_file(self) -> Path:
        """Where that model is. Raises UserError as `base` does."""
        path, base = self.path / BASE, self.state.get("base")
        if not base:
            raise UserError(f"{self.path} has not kept the model that it began with")
        if not path.is_file() or sha256(path) != base["sha256"]:
            raise UserError(
                f"{path} is missing or damaged: continue the run, which writes it again from its "
                f"`init` as long as that is unchanged, or put the file back"
            )
        return path


def keep_base(run: Path, weights: Mapping[str, torch.Tensor]) -> str:
    """Write the model that fine-tuning begins with into the run directory; its SHA-256. The same
    weights give the same bytes."""
    write_tensors(run / BASE, weights)
    return sha256(run / BASE)
