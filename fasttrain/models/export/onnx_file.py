"""The one-step function as an ONNX file, for every runtime that reads it, checked before it is
kept.

    inputs     latents [batch, C, H, W] float32, N(0, 1); with classes, labels [batch] int64, from 0
               to label_dim - 1: others are not noticed, and make images of no class
    output     images [batch, C, H, W] float32, about [-1, 1]; of a model of latents, decoded

    difference = write_onnx(Path("generator.onnx"), weights, info, metadata, plain)

Needs the extra `onnx`: the packages onnx, onnxscript and onnxruntime.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fasttrain.models.export.pipeline import network_arguments
from fasttrain.models.export.plain_generator import EPS, one_step, seed_latents
from fasttrain.models.files.model_file import ModelInfo
from fasttrain.models.files.vae import decode
from fasttrain.models.latents import Decoder
from fasttrain.models.networks.network import Plain
from fasttrain.settings.registry import load
from fasttrain.system.errors import UserError

__all__ = ["OneStep", "write_onnx"]

TOLERANCE = 1e-4
"""Of images of about 1, on a CPU."""
BATCHES = (1, 3)
"""The file is made with two images, and checked with others."""
LARGEST = 1_900_000_000
"""Bytes of weights up to which all is one file: protocol buffers end at 2 GiB."""
NEEDED = ("onnx", "onnxscript", "onnxruntime")


class OneStep(nn.Module):
    """The function that is exported."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        info: ModelInfo,
        plain: Plain,
        decoder: Decoder | None = None,
    ) -> None:
        super().__init__()
        self.sigma, self.sigma_mid = info.sigma or 80.0, info.sigma_mid
        self.classes, self.size = info.network.label_dim, info.network.img_resolution
        self.channels = info.network.img_channels
        said = info.network.prediction
        self.scalings = {"data": said.sigma_data, "eps": EPS if said.eps is None else said.eps}
        build_plain = load(f"{plain.parts[-1]}:build_plain")
        self.model: nn.Module = build_plain(**network_arguments(info))
        self.load_state_dict(dict(weights))
        self.decoder = decoder
        self.vae = None if decoder is None else decoder.vae.network

    def forward(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        hot = None if labels is None else F.one_hot(labels, self.classes).float()
        made = one_step(
            self.model, latents, hot, sigma=self.sigma, sigma_mid=self.sigma_mid, **self.scalings
        )
        return (
            made if self.decoder is None else decode(self.decoder.vae, made, self.decoder.latents)
        )

    def inputs(self, batch: int) -> tuple[Tensor, ...]:
        """Of the first seeds, classes in turn."""
        z = seed_latents(range(batch), (self.channels, self.size, self.size))
        return (z, torch.arange(batch) % self.classes) if self.classes else (z,)


@torch.no_grad()
def write_onnx(
    out: Path,
    weights: Mapping[str, Tensor],
    info: ModelInfo,
    metadata: Mapping[str, str],
    plain: Plain,
    decoder: Decoder | None = None,
) -> float:
    """Write the file, with a file OUT.data beside it where it is large, once it has been checked;
    the largest difference from torch that was seen. decoder: of a model of latents.

    Raises UserError when a package is missing, or the difference is above TOLERANCE.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--to onnx needs {', '.join(missing)}: pip install 'fasttrain[onnx]'")
    function = OneStep(weights, info, plain, decoder).eval()
    large = sum(p.numel() * 4 for p in function.parameters()) > LARGEST
    names = ["latents", "labels"][: len(function.inputs(1))]
    batch = torch.export.Dim("batch")
    with tempfile.TemporaryDirectory(prefix=f"{out.name}.", dir=out.parent) as work, _quiet():
        program = torch.onnx.export(
            function,
            function.inputs(2),
            dynamo=True,
            input_names=names,
            output_names=["images"],
            dynamic_shapes={name: {0: batch} for name in names},
            verbose=False,
        )
        assert program is not None
        program.model.metadata_props.update(metadata)
        written = Path(work, out.name)
        program.save(str(written), external_data=large)
        difference = _difference(written, function, names)
        if not difference <= TOLERANCE:
            raise UserError(
                f"onnxruntime differs from PyTorch by {difference:.1e}, more than {TOLERANCE:.0e}: "
                f"nothing was written"
            )
        for path in sorted(Path(work).iterdir(), key=lambda path: path == written):  # it comes last
            path.replace(out.with_name(path.name))
    return difference


def _difference(path: Path, function: OneStep, names: list[str]) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    most = 0.0
    for batch in BATCHES:
        inputs = function.inputs(batch)
        named = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        found = torch.from_numpy(session.run(["images"], named)[0])
        most = max(most, float((found - function(*inputs)).abs().max()))
    return most


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on libraries that are not there and folds it does not make."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
