"""Whether what a network makes is images or latents, from its channels; and how a decoder takes
latents.

    latents = latents_of(options, channels, SCALE)           # None: images
    prediction["learned_variance"] = learns_variance(options.path, channels, out)
"""

from __future__ import annotations

import math
from pathlib import Path

from fasttrain.models.files.families.foreign import Latents
from fasttrain.models.files.families.options import Options
from fasttrain.system.errors import UserError

__all__ = ["SCALE", "latents_of", "learns_variance"]

SCALE = 0.18215
"""Of the latents of Stability's autoencoder with four channels."""
OF_IMAGES = (1, 3)
"""Channels of an image, unless a scale of latents is given."""


def latents_of(
    options: Options, channels: int, scale: float | None = None, shift: float = 0.0
) -> Latents | None:
    """How a decoder takes the output of a network with this number of channels; None
    for images.

    scale, shift: of these latents, unless the user says others. Raises UserError where nobody says
    a scale.
    """
    if channels in OF_IMAGES and scale is None and options.get("scaling_factor") is None:
        return None
    why = f"the scale of its latents, for no image has its {channels} channels"
    scale = options.number("scaling_factor", scale, why=why)
    shift = options.number("shift_factor", shift)
    if not 0 < scale < math.inf or not math.isfinite(shift):
        raise UserError(f"{options.path}: scaling_factor={scale:g} is no scale of latents")
    return Latents((scale,) * channels, (-shift * scale,) * channels)


def learns_variance(path: Path, channels: int, out: int) -> bool:
    """Whether a network makes as many channels again, for a variance. Raises UserError when it
    makes another number: then it sees more than the noisy image."""
    if out not in (channels, 2 * channels):
        raise UserError(
            f"{path} is refused: its network takes {channels} channels and makes {out}, as those "
            f"do that see another image beside the noise, which are not known here"
        )
    return out == 2 * channels
