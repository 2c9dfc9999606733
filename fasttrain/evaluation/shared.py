"""What a metric's features share with those that a generator was trained on: then the metric may
fall for what deceives the discriminator, and says less than it seems to.

    shared(settings)       # "lite2 knows ImageNet's labels, as lite0 does, ..."; None: nothing
"""

from __future__ import annotations

from fasttrain.settings import FinetuneSettings, FrechetSettings, RunSettings
from fasttrain.settings.registry import EXTRACTORS, LABELLED_BACKBONES

__all__ = ["shared"]


def shared(settings: RunSettings) -> str | None:
    """A sentence where the run's extractor shares its network, or its labels, with a network that
    the generator is trained against; None where it shares neither, or there is none."""
    extractor = settings.evaluate.extractor
    seen = _seen(settings)
    if extractor in seen:
        return (
            f"{extractor} evaluates the run and is what the generator was trained against, too: "
            f"its distances are what was optimised"
        )
    labelled = [name for name in seen if name in LABELLED_BACKBONES or _labelled(name)]
    if labelled and EXTRACTORS[extractor].labelled:
        return (
            f"{extractor} was trained on ImageNet's labels, as {' and '.join(labelled)} was, which "
            f"the generator was trained against: its distances may flatter; compare those of "
            f"another extractor, such as dino_vits16"
        )
    return None


def _seen(settings: RunSettings) -> list[str]:
    """Names of the networks that the generator is trained against."""
    names: list[str] = []
    gan = settings if isinstance(settings, FinetuneSettings) else getattr(settings, "gan", None)
    if gan is not None:
        names += [backbone.name for backbone in gan.discriminator.backbones]
    if isinstance(settings, FrechetSettings):
        names += [judge.extractor for judge in settings.judges]
    return list(dict.fromkeys(names))


def _labelled(name: str) -> bool:
    return name in EXTRACTORS and EXTRACTORS[name].labelled
