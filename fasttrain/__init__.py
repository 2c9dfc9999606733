"""fasttrain: turn a diffusion model into a one-step generator.

Diffusion training is generative pre-training; freezing most of the U-Net's convolutions and
fine-tuning the rest against a GAN objective is enough for one-step generation (D2O-F, "Revisiting
Diffusion Models: From Generative Pre-training to One-Step Generation", ICML 2025).

    fasttrain demo            # the whole story on a laptop

In Python the same functions, imported when they are first used (`fasttrain.cli.python`):

    import fasttrain as ft
    ft.load("runs/digits-d2o-f").sample(seeds=range(64))
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fasttrain.system.threads import spin_briefly

if TYPE_CHECKING:
    from fasttrain.cli.python import Model, evaluate, finetune, load, pretrain, recipe

spin_briefly(os.environ)  # here, because it counts only before torch is imported

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "evaluate", "finetune", "load", "pretrain", "recipe"]


def __getattr__(name: str) -> Any:
    """The functions of `fasttrain.cli.python`, which import torch, on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("fasttrain.cli.python"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
