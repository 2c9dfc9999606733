"""Latents in training: drawn anew each time an image comes up, and scaled as the network sees them.

    z = scale (mean + deviation n) + bias,        n ~ N(0, 1)

with mean and deviation of the image, or, where flips are stored, with a probability of 1/2 of its
mirror image. Both draws are functions of the image's index in the run, as all others are.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from fasttrain.data import Batch, ImageStream, open_stream, storage_of
from fasttrain.models.files.families.foreign import Latents
from fasttrain.models.latents import Decoder, scaling
from fasttrain.sampling.draws import Stream, latents
from fasttrain.settings import RunSettings
from fasttrain.system.errors import UserError
from fasttrain.system.processes import World
from fasttrain_data.index import LatentInfo
from fasttrain_kernels import counter_uniform

__all__ = ["decoder_of", "drawn", "open_data"]


def open_data(settings: RunSettings, world: World) -> ImageStream:
    """The stream of a run's data, whose settings say of latents what is needed; its readers start
    with the first batch.

    Raises UserError, before anything is written.
    """
    if settings.in_pixels is not None and settings.latents is not None:
        raise UserError(
            f"latents: {settings.in_pixels} compares images; train on these, or without it"
        )
    stream = open_stream(settings, world)
    check_latents(settings, stream)
    return stream


def decoder_of(settings: RunSettings, stream: ImageStream) -> Decoder | None:
    """What makes images of a run's latents; None for a run on images."""
    info, wanted = stream.manifest.latents, settings.latents
    if info is None or wanted is None:
        return None
    how = scaling(info, stream.manifest.channels, wanted.scale, wanted.bias)
    return Decoder(how, wanted.vae)


def check_latents(settings: RunSettings, stream: ImageStream) -> None:
    """Raise UserError unless the settings say of a set of latents what is needed, and of a set of
    images nothing."""
    info, wanted = stream.manifest.latents, settings.latents
    if info is None and wanted is not None:
        raise UserError(
            f"{stream.storage} holds images, and the settings have `latents`: remove it, or name "
            f"what `fasttrain encode` wrote"
        )
    if info is None:
        return
    if wanted is None:
        raise UserError(f"{stream.storage} holds latents: set latents.vae to their autoencoder")
    decoder = decoder_of(settings, stream)
    if wanted.pictures is not None:
        size = storage_of(settings.pictures).index().resolution
        if size != info.resolution:
            raise UserError(
                f"latents.pictures={wanted.pictures} are {size}x{size}, the latents are of "
                f"images of {info.resolution}x{info.resolution}"
            )
    if decoder is not None and decoder.vae.sha256 != info.vae_sha256:
        raise UserError(
            f"latents.vae={wanted.vae} is not the autoencoder that made {stream.storage}: name "
            f"that one, or encode again"
        )


def drawn(batch: Batch, info: LatentInfo, how: Latents, seed: int) -> Batch:
    """A batch of means and deviations, float16 [n, K C, H, W] -> one of latents, float32
    [n, C, H, W], on the batch's device."""
    channels = len(how.scale)
    mean, deviation, *mirrored = batch.images.float().split(channels, dim=1)
    if mirrored:
        device = batch.index.device
        chance = counter_uniform(seed, int(Stream.FLIP), batch.index, (1, 1, 1), device=device)
        mean, deviation = (
            torch.where(chance < 0.5, one, other)
            for one, other in zip((mean, deviation), mirrored, strict=True)
        )
    noise = latents(seed, Stream.POSTERIOR, batch.index, mean.shape[1:])
    scale, bias = (
        torch.tensor(values, device=mean.device)[:, None, None] for values in (how.scale, how.bias)
    )
    return replace(batch, images=(mean + deviation * noise) * scale + bias)
