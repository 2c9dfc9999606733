"""The settings of a run: frozen, typed, keyword-only, each with a docstring.

The classes are imported when they are first used: the command line needs only names of theirs, and
a typing mistake is answered without pydantic.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fasttrain.settings.data import DataSettings
    from fasttrain.settings.discriminator import (
        BackboneSettings,
        DiscriminatorSettings,
        PenaltySettings,
    )
    from fasttrain.settings.meanflow import MeanFlowSettings
    from fasttrain.settings.network import NetworkSettings
    from fasttrain.settings.run import (
        BadStepSettings,
        CheckpointSettings,
        EMASettings,
        EngineSettings,
        EvaluateSettings,
        OptimizerSettings,
        RunSettings,
        SampleSettings,
    )
    from fasttrain.settings.tasks import (
        AdversarialSettings,
        DistillSettings,
        FinetuneSettings,
        FrechetSettings,
        JudgeSettings,
        PretrainSettings,
        ScoreSettings,
    )

__all__ = [
    "AdversarialSettings",
    "BackboneSettings",
    "BadStepSettings",
    "CheckpointSettings",
    "DataSettings",
    "DiscriminatorSettings",
    "DistillSettings",
    "EMASettings",
    "EngineSettings",
    "EvaluateSettings",
    "FinetuneSettings",
    "FrechetSettings",
    "JudgeSettings",
    "MeanFlowSettings",
    "NetworkSettings",
    "OptimizerSettings",
    "PenaltySettings",
    "PretrainSettings",
    "RunSettings",
    "SampleSettings",
    "ScoreSettings",
]

PLACES = {
    "AdversarialSettings": "fasttrain.settings.tasks",
    "BackboneSettings": "fasttrain.settings.discriminator",
    "BadStepSettings": "fasttrain.settings.run",
    "CheckpointSettings": "fasttrain.settings.run",
    "DataSettings": "fasttrain.settings.data",
    "DiscriminatorSettings": "fasttrain.settings.discriminator",
    "DistillSettings": "fasttrain.settings.tasks",
    "EMASettings": "fasttrain.settings.run",
    "EngineSettings": "fasttrain.settings.run",
    "EvaluateSettings": "fasttrain.settings.run",
    "FinetuneSettings": "fasttrain.settings.tasks",
    "FrechetSettings": "fasttrain.settings.tasks",
    "JudgeSettings": "fasttrain.settings.tasks",
    "MeanFlowSettings": "fasttrain.settings.meanflow",
    "NetworkSettings": "fasttrain.settings.network",
    "OptimizerSettings": "fasttrain.settings.run",
    "PenaltySettings": "fasttrain.settings.discriminator",
    "PretrainSettings": "fasttrain.settings.tasks",
    "RunSettings": "fasttrain.settings.run",
    "SampleSettings": "fasttrain.settings.run",
    "ScoreSettings": "fasttrain.settings.tasks",
}
"""Name -> the file that has it."""


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(PLACES[name]), name)
    return value
