"""The trainings, a row each: what their runs leave, and what that is called. Code that looks at a
run reads its row and no class; another training is its settings, its loop and a row.

    training_of(settings).generator              # whether it trains a few-step generator
    TRAININGS["finetune"].engine                 # "generator": its network's file in checkpoints
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fasttrain.settings.meanflow import MeanFlowSettings
from fasttrain.settings.run import RunSettings
from fasttrain.settings.tasks import (
    DistillSettings,
    FinetuneSettings,
    FrechetSettings,
    PretrainSettings,
    ScoreSettings,
)

__all__ = ["TRAININGS", "Training", "training_of"]


@dataclass(frozen=True)
class Training:
    """A kind of training.

    Attributes:
        task: its name, its command's and that of its settings' `task`.
        schema: its settings.
        engine: its network's name in checkpoints.
        precond: the row of its network's coefficients.
        generator: whether its network is a few-step generator that began as a diffusion model,
            which the run keeps; else it is a diffusion model.
        method: (settings, such as "one-step generator") -> what was done, in a sentence.
        facts: settings -> rows of the model card.
    """

    task: str
    schema: type[RunSettings]
    engine: str
    precond: Literal["edm", "one_step"]
    generator: bool
    method: Callable[[Any, str], str]
    facts: Callable[[Any], dict[str, Any]]

    @property
    def network(self) -> str:
        """Its network, in words."""
        return "one-step generator" if self.generator else "diffusion model"


def _diffusion_facts(settings: PretrainSettings) -> dict[str, Any]:
    return {
        "recipe": f"EDM, run {settings.run.name}",
        **({} if settings.init is None else {"base model": settings.init.name}),
        "batch": settings.batch,
        "rate": f"{settings.optimizer.rate:g}",
        "seed": settings.seed,
    }


def _pretrained(settings: PretrainSettings, network: str) -> str:
    begun = "" if settings.init is None else f" on from {settings.init}"
    return f"A {network}, trained{begun} with the EDM loss."


def _finetuned(settings: FinetuneSettings, network: str) -> str:
    beside = "" if settings.reward is None else f", with the reward {settings.reward.name}"
    how = _trained(settings) + beside
    return f"{settings.init}, turned into a {network} ({how})."


def _trained(settings: FinetuneSettings) -> str:
    if settings.adapt is not None:
        more = f", beside level {settings.freeze}" if settings.adapt.besides == "unfrozen" else ""
        return f"D2O-F, adapters {settings.adapt.kind} of rank {settings.adapt.rank}{more}"
    return "D2O, nothing frozen" if settings.freeze == "none" else f"D2O-F, level {settings.freeze}"


def _finetuning_facts(settings: FinetuneSettings) -> dict[str, Any]:
    return {
        "recipe": f"{_trained(settings).partition(',')[0]}, run {settings.run.name}",
        "frozen": f"level {settings.freeze}" if settings.adapt is None else _trained(settings),
        "base model": settings.init.name,
        "batch": settings.batch,
        "rates": f"{settings.generator.rate:g}, discriminator "
        f"{settings.discriminator.optimizer.rate:g}",
        "discriminator": ", ".join(b.name for b in settings.discriminator.backbones),
        **_rewarded(settings),
        "seed": settings.seed,
    }


def _rewarded(settings: FinetuneSettings) -> dict[str, Any]:
    wanted = settings.reward
    return {} if wanted is None else {"reward": f"{wanted.name}, weight {wanted.weight:g}"}


def _distilled(settings: DistillSettings, network: str) -> str:
    beside = " beside the GAN objective" if settings.gan is not None else ""
    return f"{settings.init}, distilled into a {network} ({settings.method}{beside})."


def _distillation_facts(settings: DistillSettings) -> dict[str, Any]:
    return {
        "recipe": f"distillation ({settings.method}), run {settings.run.name}",
        "frozen": f"level {settings.freeze}",
        "base model": settings.init.name,
        "levels": settings.levels,
        "batch": settings.batch,
        "rates": f"{settings.generator.rate:g}",
        "seed": settings.seed,
    }


def _scored(settings: ScoreSettings, network: str) -> str:
    beside = " beside the GAN objective" if settings.gan is not None else ""
    how = f"by its score ({settings.form}{beside})"
    return f"{settings.init}, distilled into a {network} {how}."


def _score_facts(settings: ScoreSettings) -> dict[str, Any]:
    return {
        "recipe": f"score distillation ({settings.form}), run {settings.run.name}",
        "frozen": f"level {settings.freeze}",
        "base model": settings.init.name,
        "batch": settings.batch,
        "rates": f"{settings.generator.rate:g}, score {settings.score.rate:g}",
        "seed": settings.seed,
    }


def _averaged(settings: MeanFlowSettings, network: str) -> str:
    beside = " beside the GAN objective" if settings.gan is not None else ""
    return f"{settings.init}, turned into a {network} by its average velocity (MeanFlow{beside})."


def _meanflow_facts(settings: MeanFlowSettings) -> dict[str, Any]:
    return {
        "recipe": f"MeanFlow, run {settings.run.name}",
        "frozen": f"level {settings.freeze}",
        "base model": settings.init.name,
        "batch": settings.batch,
        "rates": f"{settings.generator.rate:g}",
        "seed": settings.seed,
    }


def _judged(settings: FrechetSettings, network: str) -> str:
    names = ", ".join(judge.name for judge in settings.judges)
    beside = " beside the GAN objective" if settings.gan is not None else ""
    how = f"by the Frechet distance of features ({names}){beside}"
    return f"{settings.init}, turned into a {network} {how}."


def _frechet_facts(settings: FrechetSettings) -> dict[str, Any]:
    return {
        "recipe": f"Frechet distance of features, run {settings.run.name}",
        "frozen": f"level {settings.freeze}",
        "base model": settings.init.name,
        "judges": ", ".join(judge.name for judge in settings.judges),
        "batch": settings.batch,
        "rates": f"{settings.generator.rate:g}",
        "seed": settings.seed,
    }


TRAININGS: Mapping[str, Training] = {
    "pretrain": Training(
        "pretrain",
        PretrainSettings,
        engine="network",
        precond="edm",
        generator=False,
        method=_pretrained,
        facts=_diffusion_facts,
    ),
    "finetune": Training(
        "finetune",
        FinetuneSettings,
        engine="generator",
        precond="one_step",
        generator=True,
        method=_finetuned,
        facts=_finetuning_facts,
    ),
    "distill": Training(
        "distill",
        DistillSettings,
        engine="generator",
        precond="one_step",
        generator=True,
        method=_distilled,
        facts=_distillation_facts,
    ),
    "score": Training(
        "score",
        ScoreSettings,
        engine="generator",
        precond="one_step",
        generator=True,
        method=_scored,
        facts=_score_facts,
    ),
    "meanflow": Training(
        "meanflow",
        MeanFlowSettings,
        engine="generator",
        precond="one_step",
        generator=True,
        method=_averaged,
        facts=_meanflow_facts,
    ),
    "frechet": Training(
        "frechet",
        FrechetSettings,
        engine="generator",
        precond="one_step",
        generator=True,
        method=_judged,
        facts=_frechet_facts,
    ),
}
"""By the name of the task."""


def training_of(settings: RunSettings) -> Training:
    """The row of a run's settings."""
    return next(row for row in TRAININGS.values() if isinstance(settings, row.schema))
