"""The settings of a run: frozen, typed, keyword-only, each with a docstring."""

from fasttrain.settings.data import DataSettings
from fasttrain.settings.discriminator import (
    BackboneSettings,
    DiscriminatorSettings,
    PenaltySettings,
)
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
    "NetworkSettings",
    "OptimizerSettings",
    "PenaltySettings",
    "PretrainSettings",
    "RunSettings",
    "SampleSettings",
]
