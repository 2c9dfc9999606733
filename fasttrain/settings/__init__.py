"""The settings of a run: frozen, typed, keyword-only, each with a docstring."""

from fasttrain.settings.data import DataSettings
from fasttrain.settings.discriminator import BackboneSettings, DiscriminatorSettings, R1Settings
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
from fasttrain.settings.tasks import FinetuneSettings, PretrainSettings

__all__ = [
    "BackboneSettings",
    "BadStepSettings",
    "CheckpointSettings",
    "DataSettings",
    "DiscriminatorSettings",
    "EMASettings",
    "EngineSettings",
    "EvaluateSettings",
    "FinetuneSettings",
    "NetworkSettings",
    "OptimizerSettings",
    "PretrainSettings",
    "R1Settings",
    "RunSettings",
    "SampleSettings",
]
