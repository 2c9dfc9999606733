"""Traffic of a process in an iteration, in bytes, with ring collectives: a reduce-scatter over W
processes, or an all-gather, sends (W - 1) / W of the whole; both together are an all-reduce.

    stage 0    an all-reduce of the gradients of trained parameters
    stage 1    the same, in buckets, and an all-gather of the parts that Adam updated
    stage 2    the same, after each micro-batch
    stage 3    gradients reduced to their parts, after each micro-batch; weights, frozen ones too,
               gathered in every forward and every backward pass
"""

from __future__ import annotations

from fasttrain.analysis.planning.sizes import Sizes

__all__ = ["sent"]


def sent(
    sizes: Sizes,
    stage: int,
    world: int,
    *,
    steps: float = 1,
    backwards: float = 1,
    passes: float = 0,
    frozen_bytes: int = 2,
    kept_whole: int = 0,
) -> int:
    """Bytes that a process sends for a network in an iteration.

    steps: optimizer steps. backwards: backward passes in all. passes: forward and backward passes,
    which gather weights at stage 3.
    """
    ring = (world - 1) / world
    gradients = 4 * sizes.trainable
    if stage == 0:
        return round(2 * ring * gradients * steps)
    if stage == 1:
        return round(3 * ring * gradients * steps)
    if stage == 2:
        return round(ring * gradients * (2 * backwards + steps))
    gathered = 4 * sum(n for n in sizes.trained if n > kept_whole)
    gathered += frozen_bytes * sum(n for n in sizes.frozen if n > kept_whole)
    kept = 4 * sum(n for n in sizes.trained if n <= kept_whole)
    return round(ring * (gradients * backwards + gathered * passes + kept * steps))
