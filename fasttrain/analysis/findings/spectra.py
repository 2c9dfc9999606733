"""Radial power spectra of images and feature maps, and of what each block of a network does.

power = radial_power(images)                       # [R], its sum is the mean square
mean_frequency(power)                              # in cycles an image
rows = block_spectra(network, run_network)         # a row for each block
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["BlockSpectrum", "block_spectra", "mean_frequency", "radial_power"]


def radial_power(maps: Tensor) -> Tensor:
    """Power at each whole number of cycles an image, float64 [R].

    maps: [N, C, H, H]. Entry r sums the frequencies whose distance from 0 is nearest to r, the mean
    over images and channels; by Parseval's theorem the sum of all is the mean square of the maps.
    """
    size = maps.shape[-1]
    power = torch.fft.fft2(maps.double(), norm="forward").abs().square().mean((0, 1))
    axis = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64, device=maps.device)
    radius = (axis[:, None].square() + axis[None].square()).sqrt().round().long()
    rings = torch.zeros(int(radius.max()) + 1, dtype=torch.float64, device=maps.device)
    return rings.index_add_(0, radius.flatten(), power.flatten())


def mean_frequency(power: Tensor) -> float:
    """Mean frequency of a radial spectrum without its constant part, in cycles an image; 0 where
    nothing else is."""
    rest = power[1:]
    total = rest.sum()
    if total <= 1e-12 * power.sum() or total == 0:
        return 0.0
    return float((rest * torch.arange(1, len(power), device=power.device)).sum() / total)


@dataclass(frozen=True)
class BlockSpectrum:
    """What a block gives for one input.

    Attributes:
        name: of the module. size: pixels a side of its output.
        output: radial spectrum of its output.
        change: that of its output less its input; None where their shapes differ.
    """

    name: str
    size: int
    output: Tensor
    change: Tensor | None


def block_spectra(network: Any, run: Callable[[], object]) -> list[BlockSpectrum]:
    """Spectra of each block (`network.blocks()`) in one run of the network, in its order.

    run: evaluates the network once. A block's input is its first argument, its output the first
    of several; tokens [N, H H, C] are taken as the map that they are of.

    Raises ValueError for a block whose output is neither.
    """
    names = {id(module): name for name, module in network.named_modules()}
    found: list[BlockSpectrum] = []

    def note(module: Any, inputs: tuple[Any, ...], output: Any) -> None:
        name, after = names[id(module)], _as_map(output)
        before = _as_map(inputs[0]) if inputs else None
        if after is None:
            raise ValueError(f"{name}: a block that gives no map")
        change = None
        if before is not None and before.shape == after.shape:
            change = radial_power(after - before)
        found.append(BlockSpectrum(name, after.shape[-1], radial_power(after), change))

    handles = [block.register_forward_hook(note) for block in network.blocks()]
    try:
        with torch.no_grad():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return found


def _as_map(value: Any) -> Tensor | None:
    """Float32 [N, C, H, H] of a map or of tokens, alone or the first of several."""
    first = value[0] if isinstance(value, tuple) else value
    if not isinstance(first, Tensor) or first.dim() not in (3, 4):
        return None
    if first.dim() == 3:
        side = math.isqrt(first.shape[1])
        if side * side != first.shape[1]:
            return None
        first = first.transpose(1, 2).unflatten(2, (side, side))
    return first.float()
