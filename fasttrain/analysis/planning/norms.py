"""Traffic of batch norm groups that several processes share.

For each batch of images that passes a norm, forward or backward, an all-reduce of two numbers of
every channel and process.
"""

from __future__ import annotations

from fasttrain.discriminator import GhostBatchNorm, ProjectedDiscriminator
from fasttrain.discriminator.peers import check_groups
from fasttrain.settings import FinetuneSettings
from fasttrain.system.errors import UserError

__all__ = ["groups_of", "statistics_sent"]


def groups_of(settings: FinetuneSettings, world: int) -> tuple[int, tuple[str, ...]]:
    """Number of processes that share a group, and notes about it.

    Raises UserError when the batch, or its groups, do not divide over `world` processes.
    """
    if settings.batch % world:
        raise UserError(
            f"batch {settings.batch} does not divide over {world} processes: the number of "
            "processes must divide batch; set batch, --gpus or --nodes"
        )
    group = settings.discriminator.norm_group
    peers = check_groups(settings.batch, group, world)
    if peers == 1:
        return peers, ()
    note = (
        f"batch norm is over {group} images, {settings.batch // world} of each of {peers} "
        "processes, which exchange their statistics"
    )
    return peers, (note,)


def statistics_sent(
    settings: FinetuneSettings, discriminator: ProjectedDiscriminator, peers: int
) -> int:
    """Bytes that a process sends to its peers in an iteration."""
    norms = [m for m in discriminator.heads.modules() if isinstance(m, GhostBatchNorm)]
    numbers = 2 * peers * sum(norm.weight.numel() for norm in norms)
    ring = 2 * (peers - 1) / peers
    return round(ring * 4 * numbers * _batches(settings))


def _batches(settings: FinetuneSettings) -> float:
    """Batches that pass a norm, forward or backward: fakes in the generator's step; reals, fakes
    and noisy ones in the discriminator's. An exact penalty computes the first derivative in another
    forward pass, and differentiates both again."""
    penalties = (settings.r1, settings.r2)
    noisy = sum(p.share for p in penalties if p.approximates)
    exact = sum(5 * p.share / p.lazy_interval for p in penalties if p.lazy_interval)
    return 2 * (1 + 2 + noisy) + exact
