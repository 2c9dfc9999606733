"""TensorFlow 1's bilinear resize, the first operation in the graph of FID's Inception network.

Pixel i of the result is sampled at i * in / out, so that both images' first pixels coincide;
torch's `interpolate` aligns their centres, and gives other features. Between two pixels it is
linear, beyond the last one constant, and it does not antialias:

    lo = floor(s),  hi = min(lo + 1, in - 1),  y = x[lo] + (x[hi] - x[lo]) (s - lo),  s = i in / out

    resized = tf1_bilinear(images, (299, 299))
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["tf1_bilinear"]


def tf1_bilinear(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images [N, C, H, W], float, resized to [N, C, *size]; along the rows first, as in
    TensorFlow."""
    x = images
    for dim, length in ((3, size[1]), (2, size[0])):
        if x.shape[dim] == length:
            continue
        low, high, share = _taps(x.shape[dim], length, x.device)
        lower = x.index_select(dim, low)
        share = share.to(x.dtype).view([-1 if d == dim else 1 for d in range(4)])
        x = lower + (x.index_select(dim, high) - lower) * share
    return x


def _taps(length: int, wanted: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each pixel of the result its two neighbours in the source and the fraction between them;
    positions are float32, as in TensorFlow."""
    scale = torch.tensor(float(length)) / torch.tensor(float(wanted))
    place = torch.arange(wanted, dtype=torch.float32) * scale
    low = place.long()
    high = (low + 1).clamp(max=length - 1)
    return low.to(device), high.to(device), (place - low).to(device)
