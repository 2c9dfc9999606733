"""Checkpoints as EDM's tools write them, made of our networks: what is pickled has the structure of
theirs (persistence records with source text, module states, NumPy scalars), and our weights.

    write_snapshot(path, network, EDM, protocol=4)          # network-snapshot-*.pkl
    write_training_state(path, network, EDM)                # training-state-*.pt
"""

from __future__ import annotations

import pickle
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

SOURCE = "# Source text of training.networks\n" * 1000


class EasyDict(dict[str, Any]):
    """EDM's dictionary with attributes."""


class Persistent:
    """An object of a class under EDM's persistence: it is pickled as a record."""

    def __init__(self, class_name: str, state: dict[str, Any], source: str = SOURCE) -> None:
        self.meta = {
            "type": "class",
            "version": 6,
            "module_src": source,
            "class_name": class_name,
            "state": state,
        }

    def __reduce__(self) -> Any:
        return reconstruct, (self.meta,)


def reconstruct(meta: Any) -> Any:
    raise AssertionError("executes the source text that it finds")


@contextmanager
def edm_modules() -> Iterator[None]:
    """EDM's packages, as far as a pickle names them."""
    persistence, util = ModuleType("torch_utils.persistence"), ModuleType("dnnlib.util")
    persistence._reconstruct_persistent_obj = reconstruct  # type: ignore[attr-defined]
    util.EasyDict = EasyDict  # type: ignore[attr-defined]
    modules = {
        "torch_utils": ModuleType("torch_utils"),
        "torch_utils.persistence": persistence,
        "dnnlib": ModuleType("dnnlib"),
        "dnnlib.util": util,
    }
    names = reconstruct.__module__, reconstruct.__qualname__, EasyDict.__module__
    reconstruct.__module__, reconstruct.__qualname__ = (
        "torch_utils.persistence",
        "_reconstruct_persistent_obj",
    )
    reconstruct.__name__, EasyDict.__module__ = reconstruct.__qualname__, "dnnlib.util"
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
        reconstruct.__module__, reconstruct.__qualname__, EasyDict.__module__ = names
        reconstruct.__name__ = reconstruct.__qualname__


def as_edm(module: nn.Module, class_name: str | None = None, **kwargs: Any) -> Any:
    """A module as EDM's code would hold it: its own classes are persistent, torch's are not."""
    state = dict(nn.Module().__dict__)
    state["training"] = False
    for kind in ("_parameters", "_buffers", "_modules"):
        state[kind] = OrderedDict(getattr(module, kind))
    state["_modules"] = OrderedDict((n, as_edm(m)) for n, m in module._modules.items() if m)
    if isinstance(module, nn.ModuleDict):
        held = nn.ModuleDict()
        held.__dict__.update(state)
        return held
    state |= {"skip_scale": np.sqrt(0.5), "num_heads": 1, "_init_args": (), "_init_kwargs": kwargs}
    return Persistent(class_name or type(module).__name__, state)


def constructed_with(network: Any, **kwargs: Any) -> dict[str, Any]:
    """The arguments of EDM's preconditioner, as EDM's training code gives them."""
    return {
        "model_type": type(network.model).__name__,
        "img_resolution": network.img_resolution,
        "img_channels": network.img_channels,
        "label_dim": network.label_dim,
        "use_fp16": True,
        **{name: list(v) if isinstance(v, tuple) else v for name, v in kwargs.items()},
    }


def snapshot(network: Any, kwargs: dict[str, Any], class_name: str = "EDMPrecond") -> Any:
    """The object in a network-snapshot-*.pkl."""
    return {
        "ema": as_edm(network, class_name, **constructed_with(network, **kwargs)),
        "loss_fn": Persistent("EDMLoss", {"P_mean": -1.2, "P_std": np.float32(1.2)}),
        "augment_pipe": Persistent("AugmentPipe", {"p": 0.12, "xflip": 1e8}),
        "dataset_kwargs": EasyDict(path="./datasets/x.zip", resolution=64, max_size=None),
    }


def write_snapshot(
    path: Path,
    network: Any,
    kwargs: dict[str, Any],
    *,
    class_name: str = "EDMPrecond",
    protocol: int = pickle.DEFAULT_PROTOCOL,
) -> None:
    with edm_modules(), path.open("wb") as file:
        pickle.dump(snapshot(network, kwargs, class_name), file, protocol=protocol)


def write_training_state(path: Path, network: Any, kwargs: dict[str, Any], **how: Any) -> None:
    """With an optimizer's state after a step, as Adam has it."""
    moments = {
        index: {"step": torch.tensor(1.0), "exp_avg": torch.zeros_like(p), "exp_avg_sq": p * p}
        for index, p in enumerate(network.parameters())
    }
    optimizer = {"state": moments, "param_groups": [{"lr": 1e-3, "params": list(moments)}]}
    net = as_edm(network, "EDMPrecond", **constructed_with(network, **kwargs))
    with edm_modules():
        torch.save({"net": net, "optimizer_state": optimizer}, path, **how)
