"""Settings that pre-training and fine-tuning share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from fasttrain.settings.adapt import AdaptSettings
from fasttrain.settings.base import (
    Beta,
    Branch,
    FewStep,
    FreezeLevel,
    Seed,
    Settings,
    UserPath,
    ZeroStage,
)
from fasttrain.settings.data import DataSettings
from fasttrain.settings.decay import DecaySettings
from fasttrain.settings.deepspeed_keys import check_passed_on
from fasttrain.settings.latents import LatentSettings
from fasttrain.settings.network import NetworkSettings
from fasttrain.settings.registry import EXTRACTORS
from fasttrain.system.errors import UserError

__all__ = ["EngineSettings", "ExtractorName", "OptimizerSettings", "RunSettings"]

if TYPE_CHECKING:
    ExtractorName = str
else:
    ExtractorName = Literal[tuple(EXTRACTORS)]


class OptimizerSettings(Settings):
    """Adam. Weight decay is not used by any published recipe."""

    rate: PositiveFloat
    """Learning rate."""
    betas: tuple[Beta, Beta] = (0.0, 0.99)
    """Decay of the two moments."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    ramp_up: NonNegativeInt = 0
    """Images over which the rate grows linearly from 0."""
    decay: DecaySettings = DecaySettings()


class EMASettings(Settings):
    """Exponential moving average: half-life min(half_life, fraction * images seen so far)."""

    half_life: PositiveInt
    """Half-life of the average, in images."""
    fraction: PositiveFloat = 0.05
    """Upper bound of the half-life, as a fraction of the images seen so far."""


class EvaluateSettings(Settings):
    """Distances on pooled features of a network that no discriminator uses."""

    every: NonNegativeInt | None = 0
    """Images between two evaluations in the loop; 0: only at the end; null: none at all, the
    default of pre-training."""
    extractor: ExtractorName = "lite2"
    """`inception`: the network of published FIDs, whose weights are a file to download."""
    weights: UserPath | None = None
    """That file or its folder. Default: the folder that FASTTRAIN_WEIGHTS names."""
    samples: PositiveInt | None = None
    """Numbers of generated and of real images to compare; time grows with the square. Default: half
    of the data set (of a mixture: of the images before one comes again), 10,000 at most."""
    components: PositiveInt | None = 64
    """Leading principal components of the reference set that `fd` uses; null for all dimensions, as
    in published FIDs."""
    batch: PositiveInt = 256
    """Images of a batch; it changes the metrics only by rounding."""
    metric: Literal["fd", "fd_full", "kd", "precision", "recall", "is"] = "fd"
    """Metric that selects the best checkpoint and that the report plots. The highest value of
    precision, recall and `is` (the inception score, of `inception` only) is best, the lowest of the
    others."""

    @model_validator(mode="after")
    def _classifies(self) -> EvaluateSettings:
        entry = EXTRACTORS[self.extractor]
        if self.metric == "is" and not entry.classifies:
            known = " or ".join(name for name, other in EXTRACTORS.items() if other.classifies)
            raise ValueError(f"metric: only the extractor {known} has an inception score")
        if self.weights is not None and not entry.downloaded:
            known = " or ".join(name for name, other in EXTRACTORS.items() if other.downloaded)
            raise ValueError(f"weights: only the extractor {known} needs a file; remove it")
        return self


class StopSettings(Settings):
    """The end of a run before its last image."""

    patience: PositiveInt | None = None
    """Evaluations without a better `evaluate.metric` after which the run ends; the checkpoint of
    the best one is kept. Default: the run never ends early."""


class SampleSettings(Settings):
    """The grid of fixed seeds that is drawn during training."""

    every: NonNegativeInt = 0
    """Images between two grids; 0: only at the end."""
    count: PositiveInt = 64
    """Images of a grid, of the seeds from 0 on."""


class LogSettings(Settings):
    """Boards that show a run elsewhere. `stats.jsonl` and TensorBoard's files, with the grids, are
    always written."""

    wandb: Literal["offline", "online", False] = False
    """Weights & Biases gets the same numbers and grids: `offline`, into RUN/wandb, for `wandb sync`
    later; `online`, with the account of `wandb login`. Needs `pip install 'fasttrain[wandb]'`."""
    project: str = Field(default="fasttrain", min_length=1)
    """Its project there; the run has the name of the run directory."""


class CheckpointSettings(Settings):
    """When a run writes all that it takes to go on, and how much of that stays on disk."""

    every: PositiveInt
    """Images between two checkpoints; each evaluation writes one, too."""
    keep: PositiveInt = 2
    """Number of newest checkpoints to keep; the best by `evaluate.metric` is kept, too."""


class BadStepSettings(Settings):
    """Reaction to a loss or a gradient that is not finite: the step is skipped on all processes and
    counted; after several consecutive iterations of this kind the run returns to its last good
    checkpoint and continues with other images and draws."""

    in_a_row: PositiveInt = 10
    """Consecutive iterations with a skipped step, or skipped steps of one kind, such as R1's,
    before the run returns to its last checkpoint."""
    rollbacks: NonNegativeInt = 2
    """Returns to the same checkpoint before the run stops."""


class EngineSettings(Settings):
    """Distribution of the work over processes."""

    kind: Literal["auto", "local", "deepspeed"] = "auto"
    """`auto`: DeepSpeed when several processes were launched, else plain PyTorch."""
    zero_stage: ZeroStage = 1
    """Parts of the networks that DeepSpeed shards over processes: 1 optimizers, 2 gradients too, 3
    all weights of the U-Net too (the discriminator's heads are at 2 then)."""
    timeout_minutes: PositiveFloat = 30
    """Longest time that a process waits for the others before it ends. Rank 0 evaluates and writes
    checkpoints in that time."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Keys added to the generated DeepSpeed JSON; only keys that change no result are accepted."""

    @model_validator(mode="after")
    def _not_ours(self) -> EngineSettings:
        check_passed_on(self.deepspeed, self.zero_stage)
        return self


class RunSettings(Settings):
    """Settings that pre-training and fine-tuning share."""

    run: UserPath
    """Run directory; the same command resumes it."""
    from_: Branch | None = Field(None, alias="from")
    """Another run and a checkpoint of it, RUN@IMAGES: this run starts as a copy of it and goes on
    with its own settings, but for the same network, frozen layers and discriminator's size."""
    data: DataSettings
    network: NetworkSettings
    latents: LatentSettings | None = None
    """Set where `data` holds latents; `network.img_resolution` and `img_channels` are theirs."""
    seed: Seed = 0
    """Seed of every random draw: first weights, order of images, noise, augmentation."""
    batch: PositiveInt
    """Images of an iteration, over all processes."""
    micro_batch: PositiveInt | None = None
    """Images that a process puts through the networks at once. Default: all of its images."""
    images: PositiveInt
    """Images to train for."""
    ema: EMASettings
    report_every: PositiveInt = 1024
    """Images between two lines of `stats.jsonl`."""
    sample: SampleSettings = SampleSettings()
    log: LogSettings = LogSettings()
    checkpoint: CheckpointSettings
    evaluate: EvaluateSettings = EvaluateSettings()
    stop: StopSettings = StopSettings()
    bad_steps: BadStepSettings = BadStepSettings()
    engine: EngineSettings = EngineSettings()
    kernels: Literal["auto", "triton", "reference"] = "auto"
    """`auto`: Triton on a GPU, plain PyTorch elsewhere."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the U-Net's activations and frozen weights; trained parameters stay float32.
    `auto`: bfloat16 on a GPU; on a CPU `pretrain` and `finetune` take the faster one, by a
    measurement at the start that the checkpoints keep, other trainings float32."""
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    """Memory format of the U-Net's activations. `auto`: channels_last on a GPU or in bfloat16, else
    contiguous."""
    recompute_norms: bool = False
    """Recompute the norms before trained convolutions in the backward pass instead of keeping them:
    less memory, the same numbers."""
    compile: bool = False
    """Compile the rest of the U-Net, between the fused operations, with torch.compile."""
    tune_convolutions: bool = False
    """On a GPU: cuDNN times its algorithms for each shape of the training, whose shapes do not
    change, and takes the fastest. A resumed run may then round otherwise than an unbroken one."""

    @property
    def pictures(self) -> DataSettings:
        """The data as images: themselves, or those that the latents are of. Raises UserError for
        latents of which nobody has said."""
        if self.latents is None:
            return self.data
        if self.latents.pictures is None:
            raise UserError("latents.pictures: name the shard set of the images that they are of")
        return self.data.model_copy(
            update={"path": self.latents.pictures, "index": None, "mix": ()}
        )

    @property
    def freezing(self) -> FreezeLevel:
        """What does not train of the network: here nothing."""
        return "none"

    @property
    def adaptation(self) -> AdaptSettings | None:
        """Adapters that train in the place of weights: here none."""
        return None

    @property
    def in_pixels(self) -> str | None:
        """What of the training looks at images alone, and not at latents; None: nothing."""
        return None

    @property
    def second_time(self) -> float | None:
        """The whole interval of a network that learns average velocities, in a flow's time; None
        for any other."""
        return None

    @property
    def few_step(self) -> FewStep | None:
        """How a trained generator makes images; None for a diffusion model."""
        return None

    def process_counts(self) -> list[int]:
        """Numbers of processes that can share a batch, smallest first."""
        if self.engine.kind == "local":
            return [1]
        return [n for n in range(1, self.batch + 1) if self.batch % n == 0]

    @model_validator(mode="after")
    def _evaluates(self) -> RunSettings:
        if self.stop.patience is not None and not self.evaluate.every:
            raise ValueError(
                "stop.patience: the run has no evaluation before its end; set evaluate.every, too"
            )
        return self

    @model_validator(mode="after")
    def _compiles(self) -> RunSettings:
        if self.compile and self.engine.zero_stage == 3:
            raise ValueError(
                "compile: ZeRO 3 gathers weights by hooks that torch.compile does not see; set "
                "engine.zero_stage to 2 at most, or compile to false"
            )
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> RunSettings:
        streams = self.data.streams
        if streams is not None and self.batch % streams:
            raise ValueError(f"batch {self.batch} is not a multiple of {streams} data.streams")
        return self
