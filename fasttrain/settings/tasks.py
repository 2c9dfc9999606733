"""The settings of a run: frozen, typed, keyword-only, each with a docstring.

`fasttrain.settings.recipes` reads them from recipes::

    settings = load_settings("digits-d2o-f", ["r1.gamma=0.1"], FinetuneSettings)
    settings.r1.gamma
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from fasttrain.settings.base import (
    AUGMENT_DIM,
    Distillation,
    FreezeLevel,
    InitPath,
    ScoreForm,
    Settings,
    UserPath,
)
from fasttrain.settings.discriminator import BackboneSettings, DiscriminatorSettings
from fasttrain.settings.gan import GanSettings
from fasttrain.settings.generator import GeneratorSettings
from fasttrain.settings.reward import RewardSettings
from fasttrain.settings.run import ExtractorName, OptimizerSettings, RunSettings

__all__ = [
    "AdversarialSettings",
    "DistillSettings",
    "FinetuneSettings",
    "FrechetSettings",
    "JudgeSettings",
    "PretrainSettings",
    "ScoreSettings",
]


class PretrainSettings(RunSettings):
    """Diffusion training with the EDM loss."""

    task: Literal["pretrain"]
    """The command that the recipe is for."""
    init: InitPath | None = None
    """A diffusion model to go on with: a run of `fasttrain pretrain`, or a model file. Its classes
    may be others than the data's: then the class embedding is mapped by name, or made anew."""
    init_classes: UserPath | None = None
    """Names of that model's classes in their order, a line each in a text file; or a shard set. Not
    needed where the model says them, as runs and their exports do."""
    optimizer: OptimizerSettings
    p_mean: float = -1.2
    """Mean of ln sigma."""
    p_std: PositiveFloat = 1.2
    """Standard deviation of ln sigma."""
    augment: float = Field(0.0, ge=0, le=1)
    """Probability of each transformation of EDM's non-leaky augmentation; mirroring has probability
    1/2 whenever this is not 0. The network receives the transformations as labels (augment_dim
    9)."""

    @model_validator(mode="before")
    @classmethod
    def _evaluates_on_request(cls, values: Any) -> Any:
        """A diffusion model's images take 35 evaluations each, so none are made unasked."""
        wanted = values.get("evaluate", {}) if isinstance(values, dict) else None
        if not isinstance(wanted, dict) or "every" in wanted:
            return values
        return values | {"evaluate": {"every": None, **wanted}}

    @model_validator(mode="after")
    def _names_of_a_model(self) -> PretrainSettings:
        if self.init_classes is not None and self.init is None:
            raise ValueError("init_classes: names of the classes of what? set init, or remove it")
        return self

    @model_validator(mode="after")
    def _of_images(self) -> PretrainSettings:
        if self.augment and self.latents is not None:
            raise ValueError("augment: latents are not augmented; remove it")
        return self

    @model_validator(mode="after")
    def _has_labels(self) -> PretrainSettings:
        if self.augment and self.network.augment_dim != AUGMENT_DIM:
            raise ValueError(
                f"augment={self.augment} would leak into generated images: the network needs "
                f"{AUGMENT_DIM} augmentation labels; set network.augment_dim={AUGMENT_DIM}"
            )
        return self


class FinetuneSettings(GanSettings, GeneratorSettings):
    """D2O: GAN fine-tuning turns a diffusion model into a one-step generator."""

    task: Literal["finetune"]
    """The command that the recipe is for."""
    graphs: bool = False
    """On a GPU: replay the passes of both networks as CUDA graphs, captured at their first call,
    where launches take longer than the work. Activations stay allocated between the passes."""
    reward: RewardSettings | None = None
    """A differentiable reward of the generator's images, beside the GAN objective; none by
    default."""

    def process_counts(self) -> list[int]:
        """Numbers with whole groups of batch norm on each process, or equal parts of one group."""
        return self.divides(self.batch, super().process_counts())

    @model_validator(mode="after")
    def _rewards_images(self) -> FinetuneSettings:
        if self.reward is not None and self.latents is not None:
            raise ValueError("reward: it sees images, and the run has latents; remove it")
        return self

    @model_validator(mode="after")
    def _captures(self) -> FinetuneSettings:
        if self.graphs and self.engine.zero_stage == 3:
            raise ValueError(
                "graphs: ZeRO 3 moves weights between passes, which a graph does not follow; "
                "set engine.zero_stage to 2 at most, or graphs to false"
            )
        if self.graphs and self.discriminator.trains_features:
            raise ValueError("graphs: only heads are captured; set backbones' train to false")
        if self.graphs and self.compile:
            raise ValueError("graphs: a compiled network is not captured; set compile to false")
        return self

    @model_validator(mode="after")
    def _groups_divide(self) -> FinetuneSettings:
        self.check_groups(self.batch, self.micro_batch)
        self.check_inputs(self.latents is not None, self.compile)
        return self


class GanTermSettings(GanSettings):
    """The GAN objective beside another one."""

    weight: PositiveFloat = 1.0
    """Weight of the generator's loss beside the other objective."""


class BesideGanSettings(GeneratorSettings):
    """A training whose objective may stand beside the GAN's."""

    gan: GanTermSettings | None = None
    """The GAN objective beside the training's own; none by default."""

    @property
    def discriminator(self) -> DiscriminatorSettings:
        """That of the GAN objective. Raises ValueError without one."""
        if self.gan is None:
            raise ValueError("this training has no discriminator")
        return self.gan.discriminator

    def process_counts(self) -> list[int]:
        counts = super().process_counts()
        return counts if self.gan is None else self.gan.divides(self.batch, counts)

    @model_validator(mode="after")
    def _groups_divide(self) -> BesideGanSettings:
        if self.gan is not None:
            self.gan.check_groups(self.batch, self.micro_batch)
            self.gan.check_inputs(self.latents is not None, self.compile)
        return self


class DistillSettings(BesideGanSettings):
    """Distillation: the student learns to reach in one step what its teacher, the diffusion model
    that it begins as, reaches in more. The paper's baselines."""

    task: Literal["distill"]
    """The command that the recipe is for."""
    method: Distillation
    """`pd`: progressive distillation, all step sizes at once. `cd`: consistency distillation.
    `ctm`: consistency trajectories. `rcd`: each step of the trajectory from the last level alone.
    See `training/objectives/distillation.py`."""
    levels: int = Field(default=16, ge=4, le=1024)
    """Noise levels of the teacher's trajectory, on EDM's grid below `sigma`; a power of two for
    `pd`."""
    freeze: FreezeLevel = "none"
    """What does not train: by default nothing, as in the paper's distillations."""
    distance: Literal["squared", "features"] = "squared"
    """Distance of the student's image from its target: mean squared error of pixels, or of the unit
    features of a frozen network (LPIPS without its learned weights)."""
    features: BackboneSettings = BackboneSettings()
    """That frozen network."""

    @property
    def in_pixels(self) -> str | None:
        return "distance: features" if self.distance == "features" else None

    @model_validator(mode="after")
    def _halves(self) -> DistillSettings:
        if self.method == "pd" and self.levels & (self.levels - 1):
            raise ValueError(f"levels: pd halves {self.levels} levels again and again; set 8, 16")
        if self.engine.zero_stage == 3:
            raise ValueError(
                "engine.zero_stage: distillation uses the student's weights several times before a "
                "backward pass, which ZeRO 3 cannot; set it to 2 at most"
            )
        return self


class ScoreSettings(BesideGanSettings):
    """Score distillation: a diffusion model of the generator's images is trained beside the
    generator, and where it and the teacher, the diffusion model that both begin as, disagree, the
    generator is corrected. DMD2 and SiD; beside the GAN objective, SiDA."""

    task: Literal["score"]
    """The command that the recipe is for."""
    form: ScoreForm = "dmd"
    """`dmd`: the difference of both is the gradient. `sid`: score identity distillation, whose
    gradient goes through both. `ratio`: one classifier of real and generated images with noise,
    begun as the diffusion model's encoder, in the place of both (DiffRatio). See
    `training/objectives/score_distillation.py` and `class_ratio.py`."""
    alpha: PositiveFloat = 1.0
    """Weight of the squared difference that `sid` subtracts; the paper's are 1 and 1.2."""
    freeze: FreezeLevel = "none"
    """What does not train: by default nothing, as in the papers."""
    generator_every: PositiveInt = 5
    """Iterations from one step of the generator to the next; the diffusion model of its images, and
    the discriminator, have a step in each. DMD2's is 5, SiD's 1."""
    score: OptimizerSettings
    """That diffusion model's, or the classifier's."""

    @model_validator(mode="after")
    def _reads_maps(self) -> ScoreSettings:
        if self.compile and self.form == "ratio":
            raise ValueError("compile: torch.compile does not see form ratio's hooks; unset it")
        return self


class JudgeSettings(Settings):
    """A frozen network whose features of generated images must have the real ones' moments."""

    extractor: ExtractorName = "lite0"
    """Its name. Not the one of `evaluate`, which would then measure what was optimised."""
    resolution: PositiveInt | None = None
    """Replaces its default."""
    weights: UserPath | None = None
    """A file of pretrained weights or its folder. Default: the folder that FASTTRAIN_WEIGHTS
    names."""
    statistics: UserPath | None = None
    """Moments of the real images, a file of `fasttrain reference-stats`. Default: those of the
    run's data, computed at each start."""

    @property
    def name(self) -> str:
        """In files and statistics."""
        return self.extractor if self.resolution is None else f"{self.extractor}-{self.resolution}"


class FrechetSettings(BesideGanSettings):
    """Fine-tuning by the Frechet distance of features (FD-loss), without a discriminator, unless
    the GAN objective stands beside it."""

    task: Literal["frechet"]
    """The command that the recipe is for."""
    judges: tuple[JudgeSettings, ...] = Field(min_length=1)
    """The frozen networks; each distance counts the same, whatever its size."""
    half_life: PositiveInt
    """Half-life of the generated images' moments, in images."""
    class_length: NonNegativeFloat = 0.0
    """Length of the class, as one-hot numbers beside the features, as a fraction of their standard
    deviation (the root of their covariance's trace): then the moments are those of each class, too.
    0: of all images together."""

    @property
    def in_pixels(self) -> str | None:
        return "a Frechet distance"

    @model_validator(mode="after")
    def _known_classes(self) -> FrechetSettings:
        if self.class_length and not self.network.label_dim:
            raise ValueError("class_length: the network has no classes; remove it")
        if self.class_length and any(judge.statistics is not None for judge in self.judges):
            raise ValueError(
                "class_length: a file of statistics has no classes; remove judges' statistics, and "
                "they are computed from the data"
            )
        return self

    @model_validator(mode="after")
    def _distinct(self) -> FrechetSettings:
        names = [judge.name for judge in self.judges]
        if len(set(names)) != len(names):
            raise ValueError(f"judges: {', '.join(names)}: name each one once")
        return self


AdversarialSettings = FinetuneSettings | BesideGanSettings
"""Settings that may have a discriminator."""
