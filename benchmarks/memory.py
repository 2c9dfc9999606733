"""Activation memory of the published generators, counted without running them.

A forward pass runs on tensors that have shapes but no values; what is still alive after it, but for
weights, inputs and the images, is what the backward pass needs. That is exact for every
implementation, on any machine, and it is not the peak: a GPU's allocator and the workspaces of its
libraries come on top.

    python -m benchmarks.memory            # benchmarks/results/memory.json

Columns: `eager` and `library` of `fasttrain.analysis.profiling.columns` and ours, with D2O-F's
freezing; ours with all weights training (D2O); and that with `recompute_norms`. bfloat16
activations; channels_last but for eager.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"  # lets the kernels' shapes be asked for without a GPU

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.networks import PUBLISHED
from fasttrain.analysis.planning.activations import kept_per_image
from fasttrain.analysis.profiling.columns import EAGER, LIBRARY, Column
from fasttrain.models.freezing import apply_freezing
from fasttrain.models.networks import build_network
from fasttrain.models.networks.unet_block import UNetBlock
from fasttrain_kernels import using

RESULTS = Path(__file__).parent / "results" / "memory.json"
BATCH = 4

PLAIN = Column("eager", "", memory_format="contiguous", patches=EAGER)
LIBRARIES = Column("library", "", memory_format="channels_last", patches=LIBRARY)
OURS = Column("ours", "", "triton", "channels_last")
COLUMNS: dict[str, tuple[Column, Any, bool]] = {
    "eager": (PLAIN, 1, False),
    "library": (LIBRARIES, 1, False),
    "ours": (OURS, 1, False),
    "ours, all training": (OURS, "none", False),
    "ours, all training, recompute_norms": (OURS, "none", True),
}


def kept_bytes(network: str, column: Column, freeze: Any, recompute: bool) -> int:
    """Bytes an image that are kept for the backward pass."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with fake, column.operators(), using(column.kernels):
        net = build_network("one_step", **PUBLISHED[network], dropout=0.0).eval()
        apply_freezing(net.model, freeze)
        net.activation_dtype = torch.bfloat16
        if column.memory_format != "contiguous":
            net.memory_format = torch.channels_last
        for parameter in net.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
                if parameter.dim() == 4:
                    parameter.data = parameter.data.contiguous(memory_format=net.memory_format)
        for module in net.modules():
            if isinstance(module, UNetBlock):
                module.recompute = recompute
        size, labels = net.img_resolution, None
        noise = torch.randn(BATCH, 3, size, size)
        if net.label_dim:
            labels = torch.zeros(BATCH, net.label_dim)

        def forward(batch: int) -> Tensor:
            return net(noise[:batch], 80.0, None if labels is None else labels[:batch])

        return kept_per_image(forward, BATCH)


def main() -> None:
    result: dict[str, Any] = {"torch": torch.__version__, "bytes_per_image": {}}
    for network in PUBLISHED:
        row = {name: kept_bytes(network, *how) for name, how in COLUMNS.items()}
        result["bytes_per_image"][network] = row
        print(network, {name: f"{value / 1e6:.1f} MB" for name, value in row.items()})
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
