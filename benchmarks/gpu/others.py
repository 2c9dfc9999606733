"""The other ops: residual sums, resampling, counter-based normals, the average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.gpu.case import COMPILE, EAGER, OURS, Case, Inputs, Work, nbytes, random
from fasttrain.models.freezing import apply_freezing
from fasttrain.settings import OptimizerSettings
from fasttrain.training.ema import EMA
from fasttrain.training.engines.local import LocalEngine
from fasttrain_kernels import counter_normal, resample2d, residual_scale
from fasttrain_kernels.counter_random import philox_4x32_10
from fasttrain_kernels.statistics import partial_statistics

__all__ = ["ema_case", "normal_cases", "resample_cases", "residual_cases"]

_BFLOAT16 = torch.bfloat16
_NOT_COMPILED = "left out: hundreds of in-place updates take longer to compile than all else"


def residual_cases(*, quick: bool) -> Iterator[Case]:
    """`(branch + bias + residual) * scale`, with and without the partial statistics of y. ADM's
    scale is 1, NCSN++'s sqrt(1/2). Every gradient, the bias's too (full fine-tuning trains it)."""
    root = math.sqrt(0.5)
    if quick:
        yield _residual(2, 16, 4, 1.0, True, "NHWC")
        yield _residual(2, 16, 4, root, False, "NCHW")
        return
    for statistics in (True, False):
        yield _residual(128, 192, 64, 1.0, statistics, "NHWC")
        yield _residual(128, 256, 32, root, statistics, "NHWC")
    yield _residual(128, 576, 16, 1.0, True, "NHWC")
    yield _residual(128, 192, 64, 1.0, True, "NCHW")


def _residual(
    batch: int, channels: int, resolution: int, scale: float, statistics: bool, layout: str
) -> Case:
    def inputs(device: torch.device, seed: int) -> Inputs:
        draw = random(device, seed, _BFLOAT16, layout)
        size = (batch, channels, resolution, resolution)
        bias = draw(channels, as_dtype=torch.float32)
        return {"branch": draw(*size), "residual": draw(*size, mean=0.5), "bias": bias}

    def eager(branch: Tensor, residual: Tensor, bias: Tensor) -> Any:
        y = (branch + bias.to(branch.dtype)[:, None, None] + residual) * scale
        return (y, partial_statistics(y)) if statistics else y

    def ours(branch: Tensor, residual: Tensor, bias: Tensor) -> Any:
        if statistics:
            return residual_scale(branch, residual, bias, scale=scale, statistics=True)
        return residual_scale(branch, residual, bias, scale=scale)

    def work(inputs: Inputs, results: Any) -> Work:
        """Both and the bias in, y and its statistics out; then dy in for the bias's gradient, and
        out the one tensor that both gradients are: dy itself where the scale is 1."""
        y, bias = nbytes(results["y"]), nbytes(inputs["bias"])
        written = y + (nbytes(results["statistics"]) if statistics else 0)
        return Work(2 * y + bias + written, y + bias + (0 if scale == 1 else y))

    name = f"{channels}@{resolution} scale={scale:.3g}" + (" statistics" if statistics else "")
    return Case(
        "residual_scale", name, layout, _BFLOAT16, inputs,
        {EAGER: eager, COMPILE: eager, OURS: ours}, work,
        gradients=("branch", "residual", "bias"),
        outputs=("y", "statistics") if statistics else ("y",),
    )  # fmt: skip


def resample_cases(*, quick: bool) -> Iterator[Case]:
    """x2 up and down. eager: a depthwise convolution with the filter, as the published networks
    resample; library: torch's own op where it is the same function ([1, 1] taps)."""
    box, binomial = (1, 1), (1, 3, 3, 1)
    if quick:
        yield _resample(2, 8, 4, "up", binomial, "NHWC")
        yield _resample(2, 8, 4, "down", box, "NCHW")
        return
    yield _resample(128, 384, 32, "up", box, "NHWC")
    yield _resample(128, 192, 64, "down", box, "NHWC")
    yield _resample(128, 256, 32, "up", binomial, "NHWC")
    yield _resample(128, 128, 64, "down", binomial, "NHWC")


def _resample(
    batch: int, channels: int, resolution: int, mode: str, taps: tuple[int, ...], layout: str
) -> Case:
    def inputs(device: torch.device, seed: int) -> Inputs:
        draw = random(device, seed, _BFLOAT16, layout)
        row = torch.tensor(taps, dtype=_BFLOAT16, device=device) / sum(taps)  # exact
        x = draw(batch, channels, resolution, resolution, mean=0.5)
        return {"x": x, "window": torch.outer(row, row)}

    def eager(x: Tensor, window: Tensor) -> Tensor:
        weight = window.expand(x.shape[1], 1, -1, -1)
        pad = len(taps) // 2 - 1
        if mode == "up":
            return F.conv_transpose2d(x, 4 * weight, stride=2, padding=pad, groups=x.shape[1])
        return F.conv2d(x, weight, stride=2, padding=pad, groups=x.shape[1])

    def ours(x: Tensor, window: Tensor) -> Tensor:
        return resample2d(x, mode, taps=taps)  # type: ignore[arg-type]

    def work(inputs: Inputs, results: Any) -> Work:
        both = nbytes(inputs["x"], results["y"])
        return Work(both, both)

    columns: dict[str, Callable[..., Any]] = {EAGER: eager, COMPILE: eager}
    if len(taps) == 2 and mode == "up":
        columns["F.interpolate"] = lambda x, window: F.interpolate(x, scale_factor=2)  # nearest
    elif len(taps) == 2:
        columns["F.avg_pool2d"] = lambda x, window: F.avg_pool2d(x, 2)
    name = f"{mode} {channels}@{resolution} taps={len(taps)}"
    return Case(
        "resample2d", name, layout, _BFLOAT16, inputs, {**columns, OURS: ours}, work,
        gradients=("x",),
    )  # fmt: skip


def normal_cases(*, quick: bool) -> Iterator[Case]:
    """Latents of 3 x 64 x 64. The library's column is a lower bound and another function: normals
    from a generator with a state, which depend on the batch they are drawn in."""
    for count in (2,) if quick else (128, 512):
        yield _normal(count, (3, 4, 4) if quick else (3, 64, 64))


def _normal(count: int, shape: tuple[int, ...]) -> Case:
    def inputs(device: torch.device, seed: int) -> Inputs:
        first = seed * 1_000_003 + (1 << 33)  # both words of the index at work
        return {"indices": torch.arange(first, first + count, device=device)}

    def exact(inputs: Inputs) -> dict[str, Tensor]:
        return {"y": _float64_normals(7, 3, inputs["indices"], math.prod(shape)).view(-1, *shape)}

    def plain(indices: Tensor) -> Tensor:
        return counter_normal(7, 3, indices, shape, impl="reference")

    columns: dict[str, Callable[..., Any]] = {
        EAGER: plain,
        COMPILE: plain,
        "torch.randn (another function)": lambda indices: torch.randn(
            len(indices), *shape, device=indices.device
        ),
        OURS: lambda indices: counter_normal(7, 3, indices, shape),
    }
    return Case(
        "counter_normal", f"{count} of {'x'.join(map(str, shape))}", "-", torch.float32, inputs,
        columns, lambda inputs, results: Work(nbytes(inputs["indices"], results["y"])), exact=exact,
    )  # fmt: skip


def _float64_normals(seed: int, stream: int, indices: Tensor, numel: int) -> Tensor:
    """Box and Muller in float64 from Philox's words, a sample at a time: [N, numel]."""
    block = torch.arange((numel + 3) // 4, device=indices.device)
    samples = []
    for index in indices[:, None]:
        counter = (block, torch.full_like(block, stream), index & 0xFFFFFFFF, index >> 32)
        words = [word.double() / 2**32 for word in philox_4x32_10(counter, (seed, 0))]
        values = []
        for u, turn in (words[:2], words[2:]):
            radius, angle = (-2 * (u + 2.0**-33).log()).sqrt(), 2 * math.pi * turn
            values += [radius * angle.cos(), radius * angle.sin()]
        samples.append(torch.stack(values, dim=1).flatten()[:numel])
    return torch.stack(samples)


def ema_case(*, quick: bool) -> Case:
    """One update of the average of what trains in ADM at 64x64 frozen at level 1. eager: a loop
    over the parameters. What it costs is launches, so they are not hidden from the times."""
    images, seen, half_life = 128, 10**9, 1000.0

    def inputs(device: torch.device, seed: int) -> Inputs:
        draw = random(device, seed, torch.float32)
        module = nn.ParameterList([nn.Parameter(draw(math.prod(s))) for s in _trained(quick)])
        ema = EMA(LocalEngine(module, OptimizerSettings(rate=1.0)), half_life=half_life)
        for average in ema.average.values():
            average.add_(draw(*average.shape, std=0.1))
        return {"ema": ema}

    def loop(ema: EMA) -> list[Tensor]:
        with torch.no_grad():
            for name, average in ema.average.items():
                average.lerp_(ema.engine.parameters[name], 1 - 0.5 ** (images / half_life))
        return list(ema.average.values())

    def ours(ema: EMA) -> list[Tensor]:
        ema.update(images=images, seen=seen)
        return list(ema.average.values())

    def exact(inputs: Inputs) -> dict[str, Tensor]:
        sets = (inputs["ema"].average, inputs["ema"].engine.parameters)
        old, new = (torch.cat([t.detach().double() for t in tensors.values()]) for tensors in sets)
        share = 1 - 0.5 ** (images / half_life)
        return {"average": old + share * (new - old)}

    def work(inputs: Inputs, results: Any) -> Work:
        """Average and weights in, average out."""
        return Work(3 * nbytes(results["average"]))

    return Case(
        "ema", "a small set" if quick else "ADM 64x64, what trains at level 1", "-", torch.float32,
        inputs, {EAGER: loop, COMPILE: _NOT_COMPILED, OURS: ours}, work, outputs=("average",),
        exact=exact, hide_launch=False,
    )  # fmt: skip


def _trained(quick: bool) -> list[tuple[int, ...]]:
    """Shapes of the trained parameters."""
    if quick:
        return [(3,), (4, 5), (17,)]
    from fasttrain.models.networks.dhariwal_unet import DhariwalUNet

    with torch.device("meta"):
        network = DhariwalUNet(img_resolution=64, in_channels=3, out_channels=3, label_dim=1000)
    apply_freezing(network, 1)
    return [tuple(p.shape) for p in network.parameters() if p.requires_grad]
