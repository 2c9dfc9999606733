"""What pre-training and fine-tuning share."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from fasttrain.settings.base import Beta, Seed, Settings, UserPath, ZeroStage
from fasttrain.settings.data import DataSettings
from fasttrain.settings.deepspeed_keys import check_passed_on
from fasttrain.settings.network import NetworkSettings

__all__ = ["EngineSettings", "OptimizerSettings", "RunSettings"]


class OptimizerSettings(Settings):
    """Adam. Weight decay is not used by any published recipe."""

    rate: PositiveFloat
    """Learning rate."""
    betas: tuple[Beta, Beta] = (0.0, 0.99)
    eps: PositiveFloat = 1e-8
    ramp_up: NonNegativeInt = 0
    """Images over which the rate grows linearly from 0."""
    clip: PositiveFloat | None = None
    """Norm of the whole gradient above which it is scaled down to it. No published recipe does."""


class EMASettings(Settings):
    """Exponential moving average: half-life min(half_life, fraction * images seen so far)."""

    half_life: PositiveInt
    """Images."""
    fraction: PositiveFloat = 0.05
    """Upper bound of the half-life as a share of the images seen so far."""


class EvaluateSettings(Settings):
    """Distances on pooled features of a network that no discriminator uses."""

    every: NonNegativeInt = 0
    """Images between two evaluations in the loop; 0: only at the end."""
    extractor: Literal["lite2", "inception"] = "lite2"
    """`inception`: FID's network, whose weights are a file."""
    weights: UserPath | None = None
    """That file or a folder with it; without, the folder that FASTTRAIN_WEIGHTS names."""
    samples: PositiveInt | None = None
    """Generated and real images compared; half of the data set when not given."""
    components: PositiveInt | None = 64
    """Leading principal components of the reference set that `fd` looks at; null for all
    dimensions, as published FIDs do."""
    batch: PositiveInt = 256
    metric: Literal["fd", "fd_full", "kd", "precision", "recall", "is"] = "fd"
    """Which one says what the best checkpoint is, and is drawn in the report. Of precision, recall
    and the inception score, which only `inception` has, the highest is best, else the lowest."""

    @model_validator(mode="after")
    def _classifies(self) -> EvaluateSettings:
        if self.metric == "is" and self.extractor != "inception":
            raise ValueError("metric: only the extractor inception has an inception score")
        if self.weights is not None and self.extractor != "inception":
            raise ValueError("weights: lite2 has its own; they are of the extractor inception")
        return self


class SampleSettings(Settings):
    """The grid of fixed seeds that is drawn as training goes."""

    every: NonNegativeInt = 0
    """Images between two grids; 0: only at the end."""
    count: PositiveInt = 64


class CheckpointSettings(Settings):
    every: PositiveInt
    """Images between two checkpoints; each evaluation writes one besides."""
    keep: PositiveInt = 2
    """The newest ones kept; the best by `evaluate.metric` is kept besides."""


class BadStepSettings(Settings):
    """What happens when a loss or a gradient is not finite: the step is skipped on all processes
    and counted; after several iterations like that in a row the run goes back to its last good
    checkpoint and on from there with other images and draws."""

    in_a_row: PositiveInt = 10
    """Iterations."""
    rollbacks: NonNegativeInt = 2
    """To one and the same checkpoint; after that the run stops."""


class EngineSettings(Settings):
    """How the work is spread over processes."""

    kind: Literal["auto", "local", "deepspeed"] = "auto"
    """`auto`: DeepSpeed when several processes were launched, else plain PyTorch."""
    zero_stage: ZeroStage = 1
    """What DeepSpeed shards of the U-Net over processes: 1 its optimizer, 2 gradients too, 3 all
    weights too."""
    discriminator_zero_stage: ZeroStage | None = None
    """The same of the discriminator's heads, 2 at most; `zero_stage`, or 2, when not given."""
    timeout_minutes: PositiveFloat = 30
    """How long a process waits for the others before it ends. Rank 0 compares images with
    real ones and writes checkpoints meanwhile."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Added to the generated DeepSpeed JSON; only the keys that change no result are taken."""

    @model_validator(mode="after")
    def _not_ours(self) -> EngineSettings:
        check_passed_on(self.deepspeed, [self.zero_stage, self.discriminator_stage()])
        return self

    @model_validator(mode="after")
    def _heads_stay_whole(self) -> EngineSettings:
        if self.discriminator_zero_stage == 3:
            raise ValueError(
                "discriminator_zero_stage: ZeRO 3 lets go of weights after a backward pass, exact "
                "R1 needs them in a second one, and in the generator's step the heads' weights "
                "have no gradient for it to shard; set it to 2 at most"
            )
        return self

    def discriminator_stage(self) -> ZeroStage:
        """ZeRO stage of the discriminator's engine."""
        if self.discriminator_zero_stage is None:
            return 2 if self.zero_stage == 3 else self.zero_stage
        return self.discriminator_zero_stage


class RunSettings(Settings):
    """What pre-training and fine-tuning share."""

    run: UserPath
    """Run directory; the same command resumes it."""
    data: DataSettings
    network: NetworkSettings
    seed: Seed = 0
    batch: PositiveInt
    """Images an iteration over all processes."""
    micro_batch: PositiveInt | None = None
    """Images a process puts through the networks at once; its share of the batch when not given."""
    images: PositiveInt
    """Images to train for."""
    ema: EMASettings
    report_every: PositiveInt = 1024
    """Images between two lines of `stats.jsonl`."""
    sample: SampleSettings = SampleSettings()
    checkpoint: CheckpointSettings
    evaluate: EvaluateSettings = EvaluateSettings()
    bad_steps: BadStepSettings = BadStepSettings()
    engine: EngineSettings = EngineSettings()
    kernels: Literal["auto", "triton", "reference"] = "auto"
    """`auto`: Triton on a GPU, plain PyTorch elsewhere."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the U-Net's activations and frozen weights; what trains stays float32. `auto`: bfloat16 on
    a GPU; on a CPU whichever a measurement at the start finds faster, kept in the checkpoints."""
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    """Of the U-Net's activations. `auto`: channels_last on a GPU or in bfloat16, else
    contiguous."""
    recompute_norms: bool = False
    """Norms in front of convolutions that train are computed again in the backward pass instead of
    kept: less memory, the same numbers."""
    compile: bool = False
    """Whether torch.compile takes what is left of the U-Net between the fused operations."""

    def process_counts(self) -> list[int]:
        """The numbers of processes that can share a batch, smallest first."""
        if self.engine.kind == "local":
            return [1]
        return [n for n in range(1, self.batch + 1) if self.batch % n == 0]

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
