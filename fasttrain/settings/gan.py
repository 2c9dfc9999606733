"""Settings of the GAN objective: the discriminator, its loss and its penalties."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import NonNegativeFloat, model_validator

from fasttrain.settings.base import Settings
from fasttrain.settings.discriminator import DiscriminatorSettings, PenaltySettings
from fasttrain.settings.registry import LOSSES

__all__ = ["GanSettings"]

if TYPE_CHECKING:
    LossName = str
else:
    LossName = Literal[tuple(LOSSES)]


class GanSettings(Settings):
    """Adversarial training against a projected discriminator."""

    discriminator: DiscriminatorSettings
    r1: PenaltySettings
    """Penalty on real images."""
    r2: PenaltySettings = PenaltySettings(gamma=0.0)
    """Penalty on generated images."""
    loss: LossName = "non_saturating"
    """Objective of generator and discriminator."""
    centring: NonNegativeFloat = 0.0
    """Weight of (D(real) + D(fake))^2 in the discriminator's loss, which keeps the logits around 0:
    a relativistic loss determines only their difference."""
    reuse_fakes: bool = False
    """Whether the discriminator step judges the generator step's images, from before that step's
    update, instead of new ones: one forward pass less."""

    @property
    def lazy_interval(self) -> int | None:
        """Iterations between two steps of exact penalties, or None."""
        return self.r1.lazy_interval or self.r2.lazy_interval

    @property
    def whole(self) -> int:
        """Images that a part of a batch must have a multiple of: groups of batch norm, and as many
        of them as one is penalised of."""
        active = [p for p in (self.r1, self.r2) if p.lazy_interval or p.approximates]
        return self.discriminator.norm_group * max([p.one_in for p in active], default=1)

    def divides(self, batch: int, counts: list[int]) -> list[int]:
        """The numbers of processes, of `counts`, with whole groups of batch norm on each, or equal
        parts of one group."""
        group, whole = self.discriminator.norm_group, self.whole
        shares = {n: batch // n for n in counts}
        if whole > group:
            return [n for n, share in shares.items() if share % whole == 0]
        return [n for n, share in shares.items() if share % group == 0 or group % share == 0]

    def check_groups(self, batch: int, micro_batch: int | None) -> None:
        """Raises ValueError unless batch and micro-batch consist of whole groups."""
        group = self.discriminator.norm_group
        for name, size in (("batch", batch), ("micro_batch", micro_batch)):
            if size is not None and size % group:
                raise ValueError(
                    f"discriminator.norm_group {group} does not divide {name} {size}; "
                    f"set discriminator.norm_group to a divisor of it"
                )
            if size is not None and size % self.whole:
                raise ValueError(
                    f"share: one of {self.whole // group} groups of {group} images is penalised, "
                    f"{self.whole} images, which do not divide {name} {size}; set a larger share"
                )

    def check_inputs(self, latents: bool, compiled: bool) -> None:
        """Raises ValueError for augmentations of images where the discriminator sees latents, and
        for maps of a compiled network."""
        if latents and self.discriminator.augment:
            raise ValueError("discriminator.augment: latents are not augmented; remove it")
        if compiled and any(backbone.name == "self" for backbone in self.discriminator.backbones):
            raise ValueError(
                "compile: the maps of backbone self come from hooks that torch.compile does not "
                "see; set it to false"
            )

    @model_validator(mode="after")
    def _penalises_what_trains(self) -> GanSettings:
        if self.discriminator.trains_features and self.lazy_interval:
            raise ValueError(
                "discriminator.backbones: with train, an exact penalty would need second "
                "derivatives of the whole network; set r1.kind=approximated, or gamma to 0"
            )
        return self

    @model_validator(mode="after")
    def _one_interval(self) -> GanSettings:
        lazy = self.r1.lazy_interval, self.r2.lazy_interval
        if all(lazy) and lazy[0] != lazy[1]:
            raise ValueError(
                f"r2.interval {lazy[1]} is not r1.interval {lazy[0]}: exact penalties share their "
                f"step; set the same"
            )
        shares = {p.one_in for p in (self.r1, self.r2) if p.lazy_interval or p.approximates}
        if len(shares - {1}) > 1:
            raise ValueError("share: set the same for r1 and r2, or 1 for one of them")
        return self
