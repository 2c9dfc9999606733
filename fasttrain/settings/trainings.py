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
    BesideGanSettings,
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
        method: (settings, such as "one-step generator") -> what was done, in a sentence.
        facts: settings -> rows of the model card.
        generator: whether its network is a few-step generator that began as a diffusion model,
            which the run keeps; else it is a diffusion model.
    """

    task: str
    schema: type[RunSettings]
    method: Callable[[Any, str], str]
    facts: Callable[[Any], dict[str, Any]]
    generator: bool = True

    @property
    def engine(self) -> str:
        """Its network's name in checkpoints."""
        return "generator" if self.generator else "network"

    @property
    def precond(self) -> Literal["edm", "one_step"]:
        """The row of its network's coefficients."""
        return "one_step" if self.generator else "edm"

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


def _beside(settings: BesideGanSettings) -> str:
    return " beside the GAN objective" if settings.gan is not None else ""


def _facts(
    settings: BesideGanSettings, how: str, *, rates: str = "", **more: Any
) -> dict[str, Any]:
    """What the model cards of other objectives have in common."""
    return {
        "recipe": f"{how}, run {settings.run.name}",
        "frozen": f"level {settings.freeze}",
        "base model": settings.init.name,
        **more,
        "batch": settings.batch,
        "rates": f"{settings.generator.rate:g}{rates}",
        "seed": settings.seed,
    }


def _distilled(settings: DistillSettings, network: str) -> str:
    return f"{settings.init}, distilled into a {network} ({settings.method}{_beside(settings)})."


def _distillation_facts(settings: DistillSettings) -> dict[str, Any]:
    return _facts(settings, f"distillation ({settings.method})", levels=settings.levels)


def _scored(settings: ScoreSettings, network: str) -> str:
    how = f"by its score ({settings.form}{_beside(settings)})"
    return f"{settings.init}, distilled into a {network} {how}."


def _score_facts(settings: ScoreSettings) -> dict[str, Any]:
    how = f"score distillation ({settings.form})"
    return _facts(settings, how, rates=f", score {settings.score.rate:g}")


def _averaged(settings: MeanFlowSettings, network: str) -> str:
    how = f"by its average velocity (MeanFlow{_beside(settings)})"
    return f"{settings.init}, turned into a {network} {how}."


def _meanflow_facts(settings: MeanFlowSettings) -> dict[str, Any]:
    return _facts(settings, "MeanFlow")


def _judged(settings: FrechetSettings, network: str) -> str:
    names = ", ".join(judge.name for judge in settings.judges)
    how = f"by the Frechet distance of features ({names}){_beside(settings)}"
    return f"{settings.init}, turned into a {network} {how}."


def _frechet_facts(settings: FrechetSettings) -> dict[str, Any]:
    names = ", ".join(judge.name for judge in settings.judges)
    return _facts(settings, "Frechet distance of features", judges=names)


TRAININGS: Mapping[str, Training] = {
    row.task: row
    for row in (
        Training("pretrain", PretrainSettings, _pretrained, _diffusion_facts, generator=False),
        Training("finetune", FinetuneSettings, _finetuned, _finetuning_facts),
        Training("distill", DistillSettings, _distilled, _distillation_facts),
        Training("score", ScoreSettings, _scored, _score_facts),
        Training("meanflow", MeanFlowSettings, _averaged, _meanflow_facts),
        Training("frechet", FrechetSettings, _judged, _frechet_facts),
    )
}
"""By the name of the task."""


def training_of(settings: RunSettings) -> Training:
    """The row of a run's settings."""
    return next(row for row in TRAININGS.values() if isinstance(settings, row.schema))
