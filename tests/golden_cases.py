"""Loads the golden cases of tests/goldens (see the README there), or of the folder named by the
environment variable FASTTRAIN_GOLDENS.

Use, through the fixture `golden`: `case = golden("edm-adm-cond")`, then `case.input("x")`.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor


def golden_folder() -> Path:
    return Path(os.environ.get("FASTTRAIN_GOLDENS") or Path(__file__).parent / "goldens")


@dataclass(frozen=True)
class GoldenCase:
    """One file: its tensors under their full names (float32) and its metadata."""

    name: str
    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below `prefix/`, keyed by what follows it."""
        start = prefix + "/"
        return {
            key.removeprefix(start): value
            for key, value in self.tensors.items()
            if key.startswith(start)
        }

    def input(self, name: str) -> Tensor | None:
        return self.tensors.get(f"input/{name}")

    def output(self, name: str) -> Tensor | None:
        return self.tensors.get(f"output/{name}")

    def setting(self, name: str) -> Any:
        """A metadata entry, parsed as JSON where it is JSON."""
        text = self.metadata[name]
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return text

    @staticmethod
    def assert_close(actual: Tensor, expected: Tensor, what: str, tolerance: float = 1e-4) -> None:
        """The README's tolerance: relative to the element, and to the largest of `expected`."""
        atol = tolerance * float(expected.abs().max())
        torch.testing.assert_close(
            actual, expected, atol=atol, rtol=tolerance, msg=lambda text: f"{what}: {text}"
        )


def load_golden(name: str) -> GoldenCase:
    with safe_open(golden_folder() / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
        return GoldenCase(name, tensors, file.metadata() or {})
