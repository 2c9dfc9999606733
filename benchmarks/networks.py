"""The published networks, and what their fused ops are called with, without running them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from fasttrain.analysis.profiling.columns import LAYERS, Column
from fasttrain.models.networks import build_network

__all__ = ["PUBLISHED", "calls"]

_NCSN: dict[str, Any] = {
    "model_type": "SongUNet",
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": (1, 3, 3, 1),
    "img_channels": 3,
}

PUBLISHED: dict[str, dict[str, Any]] = {
    "adm-64": {
        "model_type": "DhariwalUNet",
        "img_resolution": 64,
        "img_channels": 3,
        "label_dim": 1000,
    },
    "ncsnpp-32": {**_NCSN, "img_resolution": 32, "label_dim": 0, "channel_mult": (2, 2, 2)},
    "ncsnpp-64": {**_NCSN, "img_resolution": 64, "label_dim": 0, "channel_mult": (1, 2, 2, 2)},
}


def calls(network: str, op: str) -> Iterator[dict[str, Any]]:
    """The arguments of every call of a fused op in one evaluation; tensors have no values."""
    found: list[dict[str, Any]] = []
    original: Callable[..., Any] = next(getattr(f, op) for f in LAYERS if hasattr(f, op))

    def record(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        found.append({"x": x, "args": args, **kwargs})
        return original(x, *args, **kwargs)

    recorded = Column(op, "its calls are recorded", patches={op: record})
    with torch.device("meta"), recorded.operators():
        net = build_network("one_step", **PUBLISHED[network], dropout=0.0).eval()
        labels = torch.zeros(1, net.label_dim) if net.label_dim else None
        size = net.img_resolution
        with torch.no_grad():
            net(torch.zeros(1, 3, size, size), 80.0, labels)
    yield from found
