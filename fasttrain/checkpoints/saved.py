"""A run at one of its checkpoints, opened and verified once, and passed on as an object.

    saved = SavedRun.open(Path("runs/digits-d2o-f"), "best")
    saved.settings, saved.images, saved.origin
    saved.weights            # full weights of the averaged model
    saved.base               # weights before fine-tuning, from the run's own copy

Every file is hashed once, however often it is used.
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
from fasttrain.settings import RunSettings
from fasttrain.settings.of_run import load_run_settings
from fasttrain.settings.trainings import training_of
from fasttrain.system.errors import UserError
from fasttrain.system.files import sha256
from fasttrain.system.tensors import read_tensors, write_tensors

__all__ = ["BASE", "SavedRun", "keep_base"]

BASE = "base.safetensors"
"""Name of the base model in the directory of a fine-tuning run."""


@dataclass(frozen=True)
class SavedRun:
    """The model of a run directory at a checkpoint.

    Attributes:
        step: the checkpoint, which matched its manifest when the run was opened.
    """

    path: Path
    settings: RunSettings
    step: Step

    @classmethod
    def open(cls, path: Path, which: str = "latest") -> SavedRun:
        """The run at a checkpoint: `latest`, `best` or a number of images.

        Raises UserError when this is not a run directory, when it has no such intact checkpoint, or
        when the checkpoint's state is not that of a run.
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
        """Content of the checkpoint's `state.json`."""
        return self.step.state

    @property
    def origin(self) -> dict[str, str]:
        """Origin of the weights, under the names of `origins.KEPT`."""
        return origin_of_state(self.state)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The averaged model's full named weights, read again each time. Weights that are not in
        the checkpoint are those of the base model, as used in training. Adapters are beside them,
        not merged (`fasttrain.models.adapters.merged`)."""
        name = training_of(self.settings).engine
        trained = {
            key.removeprefix("module/"): value
            for key, value in self.step.tensors(name).items()
            if key.startswith("module/")
        }
        weights = trained | self.step.tensors("ema")
        if self.state.get("base") and training_of(self.settings).generator:
            dtype = getattr(torch, self.state["base"].get("frozen", "float32"))
            frozen = {n: w for n, w in self.base.items() if n not in trained}
            weights = {n: w.to(dtype).to(w.dtype) for n, w in frozen.items()} | weights
        return weights

    @property
    def base(self) -> dict[str, torch.Tensor]:
        """Weights of the model that fine-tuning began with, read again each time.

        Raises UserError when the run has none, or the file is not the one it began with.
        """
        return read_tensors(self.base_file)

    @cached_property
    def base_file(self) -> Path:
        """Path of that model. Raises UserError as `base` does."""
        path, base = self.path / BASE, self.state.get("base")
        if not base:
            raise UserError(f"{self.path} does not hold the model that it began with")
        if not path.is_file() or sha256(path) != base["sha256"]:
            raise UserError(
                f"{path} is missing or damaged: continue the run, which writes it again from its "
                f"`init` as long as that is unchanged, or put the file back"
            )
        return path


def keep_base(run: Path, weights: Mapping[str, torch.Tensor]) -> str:
    """Write the model that fine-tuning begins with into the run directory; returns its SHA-256.
    Equal weights give equal bytes."""
    write_tensors(run / BASE, weights)
    return sha256(run / BASE)
