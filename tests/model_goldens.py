"""Golden models of tests/goldens/models (see the README there), or of the folder named by the
environment variable FASTTRAIN_MODEL_GOLDENS: genuine files of families, found by their .json files.

    for case in cases(): case.model, case.options(), case.tensor("input/x")
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from fasttrain.models.files.families.options import Options


def folder() -> Path:
    own = Path(__file__).parent / "goldens" / "models"
    return Path(os.environ.get("FASTTRAIN_MODEL_GOLDENS") or own)


@dataclass(frozen=True)
class ModelCase:
    """A model as users hold it, and what its family's code computes with it."""

    name: str
    about: dict[str, Any]

    @property
    def model(self) -> Path:
        return folder() / self.about["file"].rstrip("/")

    @property
    def is_decoder(self) -> bool:
        return bool(self.about["task"] == "decoder of latents")

    @property
    def is_one_step(self) -> bool:
        return bool(self.about["task"] == "one-step generator")

    @property
    def pairs(self) -> dict[str, Any]:
        """What a user says of it beside its training's settings: what those do not hold."""
        family, pairs = self.about["family"], {}
        if family.startswith(("DiT ", "SiT ")):
            pairs["family"] = family[:3].lower()
        if family.startswith("score_sde"):
            pairs["sde"] = self.about["schedule"]["sde"].lower()
        if self.is_one_step and self.model.suffix == ".pkl":
            pairs |= {"one_step": True, "sigma": self.about["one_step"]["sigma"]}
        return pairs

    def options(self) -> Options:
        return Options(self.model, self.pairs, self.about["config"])

    def arguments(self, config: Path) -> list[str]:
        """The same for `fasttrain import`; `config` is written."""
        config.write_text(json.dumps(self.about["config"]))
        pairs = dict(self.pairs)
        one_step = pairs.pop("one_step", False)
        more = ["--one-step", "--sigma", str(pairs.pop("sigma"))] if one_step else []
        said = [f"{name}={value}" for name, value in pairs.items()]
        return [str(self.model), *said, "--config", str(config), *more]

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(folder() / f"{self.name}.safetensors")

    def holds(self, name: str) -> bool:
        """Whether it has a tensor of that name; reads the file's header alone."""
        with safe_open(folder() / f"{self.name}.safetensors", "pt") as file:
            return name in file.keys()  # noqa: SIM118

    def labels(self, name: str, classes: int) -> Tensor | None:
        """One-hot rows; of no class, -1, zeros."""
        if not classes or name not in self.tensors:
            return None
        indices = self.tensors[name]
        rows = torch.zeros(len(indices), classes)
        known = indices >= 0
        rows[known, indices[known]] = 1
        return rows

    def assert_close(self, actual: Tensor, name: str) -> None:
        """Within the case's tolerance, row by row."""
        expected, tolerance = self.tensors[f"output/{name}"], self.tensors[f"tolerance/{name}"]
        assert actual.shape == expected.shape
        off = (actual.double() - expected.double()).flatten(1).abs().amax(1)
        share = float((off / tolerance.double()).max())
        assert share <= 1, f"{self.name}: {name} is off by {share:.3g} times its tolerance"


def cases(*, decoders: bool = False) -> list[ModelCase]:
    files = sorted(folder().glob("*.json"))
    found = [ModelCase(path.stem, json.loads(path.read_text())) for path in files]
    return [case for case in found if case.is_decoder == decoders]
