"""The settings of a run: frozen, typed, keyword-only, each with its meaning beside it.

`fasttrain.config` reads them from recipes::

    settings = load_settings("digits-d2o-f", ["r1.gamma=0.1"], FinetuneSettings)
    settings.r1.gamma
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from fasttrain.deepspeed_keys import check_passed_on

__all__ = [
    "AUGMENT_DIM",
    "Augmentation",
    "EngineSettings",
    "FinetuneSettings",
    "FreezeLevel",
    "GradientThrough",
    "NetworkSettings",
    "OptimizerSettings",
    "PretrainSettings",
    "RunSettings",
]


def _absolute(path: Path) -> Path:
    """A run names its files for good, wherever a later command is started."""
    return Path(os.path.abspath(path.expanduser()))


def _data_path(path: str) -> str:
    return path if "://" in path else str(_absolute(Path(path)))


UserPath = Annotated[Path, AfterValidator(_absolute)]
DataPath = Annotated[
    str,
    BeforeValidator(lambda path: str(path) if isinstance(path, Path) else path),
    AfterValidator(_data_path),
]
Beta = Annotated[float, Field(ge=0, lt=1)]
MAX_BLOCKS = 1000
"""Of a network."""
Factor = Annotated[int, Field(gt=0, le=64)]
Tap = Annotated[int, Field(gt=0, le=1_000_000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
ZeroStage = Literal[0, 1, 2, 3]
Augmentation = Literal["flip", "color", "translation", "cutout"]
FreezeLevel = Literal["none", 1, 2, 3]
GradientThrough = Literal["both", "last"]
AUGMENT_DIM = 9
"""Labels that pre-training's augmentation gives an image."""


class Settings(BaseModel):
    """Frozen, keyword-only, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class DataSettings(Settings):
    """Where the images are and how they are read."""

    path: DataPath
    """Folder of shards with an `index.json`, as `fasttrain-data convert` writes it, or its URL:
    https://, s3://, gs:// or hf://."""
    streams: PositiveInt | None = None
    """Logical streams that the epoch is dealt to, of which the order of images depends; a divisor
    of batch, and at most one a shard. When not given, it follows from batch and the set, and a
    resumed run keeps what it has."""
    order: Literal["epochs", "resampled"] = "epochs"
    """`epochs`: all shards are dealt to the streams anew in each epoch, so every image comes once
    in it; a stream that has fewer images than others is in its next epoch before them.
    `resampled`: each stream draws shards from all with replacement."""
    window: PositiveInt = 512
    """Images that are shuffled together within a stream."""
    workers: NonNegativeInt | None = None
    """Processes that read ahead, for each training process; they change nothing. None on a CPU, up
    to two on a GPU when not given."""
    max_skipped: NonNegativeInt = 100
    """So many images, over the whole run, may be passed over because they or their shards are
    damaged; one more stops the run with a checkpoint."""
    cache: UserPath | None = None
    """Folder for the shards of a URL; ~/.cache/fasttrain/shards when not given."""
    cache_gigabytes: PositiveFloat = 50
    """What that folder may hold."""
    reader_timeout: PositiveFloat = 600
    """Seconds that a batch may take to be read. Then its reader counts as hung, and the run stops
    with a checkpoint and exit status 75. Keep it below engine.timeout_minutes: other processes wait
    for no longer than that."""
    timeout: PositiveFloat = 30
    """Seconds without an answer after which a request to a URL is given up."""
    attempts: PositiveInt = 5
    """Consecutive failures of a server, or of the machine to read a folder, before giving up."""
    any_protocol: bool = False
    """Open URLs of whatever other protocol fsspec knows, too."""
    storage: dict[str, Any] = {}
    """Options of fsspec's file system, such as {anon: true}. No credentials: they are saved with
    the run; fsspec finds those in the environment or in a profile."""


class NetworkSettings(Settings):
    """The U-Net and its preconditioning; field names are those of the network's constructor."""

    model_type: Literal["SongUNet", "DhariwalUNet"] = "SongUNet"
    img_resolution: PositiveInt = Field(le=8192)
    img_channels: PositiveInt = Field(3, le=64)
    label_dim: NonNegativeInt = Field(0, le=1_000_000)
    augment_dim: NonNegativeInt = Field(0, le=10_000)
    model_channels: PositiveInt = Field(128, multiple_of=4, le=16_384)
    channel_mult: tuple[Factor, ...] = Field((1, 2, 2, 2), min_length=1, max_length=16)
    channel_mult_emb: Factor = 4
    num_blocks: PositiveInt = 4
    attn_resolutions: tuple[PositiveInt, ...] = (16,)
    dropout: float = Field(0.0, ge=0, lt=1)
    label_dropout: float = Field(0.0, ge=0, lt=1)
    embedding_type: Literal["positional", "fourier", "zero"] = "positional"
    channel_mult_noise: Factor = 1
    encoder_type: Literal["standard", "skip", "residual"] = "standard"
    decoder_type: Literal["standard", "skip"] = "standard"
    resample_filter: tuple[Tap, ...] = Field((1, 1), min_length=2, max_length=32)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for `fasttrain.networks.build_network`, only those its type takes."""
        values = self.model_dump()
        if self.model_type == "DhariwalUNet":
            for name in SONG_ONLY:
                values.pop(name)
        return values

    @model_validator(mode="after")
    def _bounded(self) -> NetworkSettings:
        if len(self.channel_mult) * (self.num_blocks + 2) > MAX_BLOCKS:
            raise ValueError(f"it has more than {MAX_BLOCKS} blocks")
        return self

    @model_validator(mode="after")
    def _song_only(self) -> NetworkSettings:
        fields = type(self).model_fields  # a run's settings are saved whole, with their defaults
        wrong = [name for name in SONG_ONLY if getattr(self, name) != fields[name].default]
        if self.model_type == "DhariwalUNet" and wrong:
            raise ValueError(f"{', '.join(wrong)}: only a SongUNet has this; remove it")
        return self


SONG_ONLY = (
    "embedding_type",
    "channel_mult_noise",
    "encoder_type",
    "decoder_type",
    "resample_filter",
)


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
    deepspeed: dict[str, Any] = {}
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
    a GPU, float32 elsewhere."""
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    """Of the U-Net's activations. `auto`: channels_last on a GPU, contiguous elsewhere."""
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


class PretrainSettings(RunSettings):
    """Diffusion training with the EDM loss."""

    task: Literal["pretrain"]
    optimizer: OptimizerSettings
    p_mean: float = -1.2
    """Mean of ln sigma."""
    p_std: PositiveFloat = 1.2
    """Standard deviation of ln sigma."""
    augment: float = Field(0.0, ge=0, le=1)
    """EDM's non-leaky augmentation: how likely each transformation is; mirroring has even odds
    whenever this is not 0. The network is told by its augmentation labels (augment_dim 9)."""

    @model_validator(mode="after")
    def _told(self) -> PretrainSettings:
        if self.augment and self.network.augment_dim != AUGMENT_DIM:
            raise ValueError(
                f"augment={self.augment} would leak into made images: the network must be told of "
                f"it by {AUGMENT_DIM} labels; set network.augment_dim={AUGMENT_DIM}"
            )
        return self


class BackboneSettings(Settings):
    """One frozen feature network of the discriminator."""

    name: Literal["lite0", "vgg16_bn", "deit_base_distilled"] = "lite0"
    resolution: PositiveInt = Field(default=224, multiple_of=32)
    """Smaller images are resized to this; larger ones are taken as they are."""
    weights: Literal["random"] | UserPath | None = None
    """A file of pretrained weights or a folder with it; without, the folder that FASTTRAIN_WEIGHTS
    names (lite0: its package). `random`: untrained features, for speed measurements."""


class DiscriminatorSettings(Settings):
    """The projected discriminator: frozen features, random mixing, trained heads."""

    backbones: tuple[BackboneSettings, ...] = Field((BackboneSettings(),), min_length=1)
    channels: PositiveInt = 64
    """Width of the random mixing at the largest map."""
    resolutions: tuple[Literal[4, 8, 16, 32, 64, 128, 256, 512], ...] = Field(
        (128, 64, 32, 16), min_length=1, max_length=4
    )
    """Nominal size of each projected map, from the largest on, which decides how often its head
    halves it; with fewer than four, the smallest maps have no head."""
    width: PositiveInt = 512
    """Channels of a head's last map, at nominal size 8; halved with each doubling of the size."""
    norm_group: PositiveInt = 16
    """Consecutive images of a batch that batch norm takes its statistics over. Processes with fewer
    images each share a group: then their share must divide it."""
    class_embedding: Literal["class_means", "random"] = "class_means"
    """Where each head's class embedding starts: mean features of the classes (those that `fasttrain
    class-features` has stored beside the data, else of a few hundred images a class), or normal
    noise."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of images, features and the heads' activations; the heads' parameters and exact R1 stay
    float32. `auto`: bfloat16 on a GPU, float32 elsewhere."""
    augment: tuple[Augmentation, ...] = ()
    """Differentiable augmentation of all images it sees."""
    optimizer: OptimizerSettings

    @model_validator(mode="after")
    def _of_several(self) -> DiscriminatorSettings:
        if self.norm_group == 1:
            raise ValueError(
                "norm_group: 1 would normalise each image by itself, which is not batch norm: set "
                "it to 2 at least"
            )
        return self

    @model_validator(mode="after")
    def _distinct(self) -> DiscriminatorSettings:
        names = [backbone.name for backbone in self.backbones]
        if len(set(names)) != len(names):
            raise ValueError(f"backbones: {', '.join(names)}: name each one once")
        return self


class R1Settings(Settings):
    """The gradient penalty on real images. `exact`: lazy R1, every `interval` iterations, gamma/2 *
    interval * penalty, a step of its own, in float32. `approximated`: weight * (D(x) - D(x + noise
    of deviation sigma))^2 in every discriminator step, without a double backward."""

    kind: Literal["exact", "approximated"] = "exact"
    gamma: NonNegativeFloat = 0.0
    interval: PositiveInt = 16
    weight: NonNegativeFloat = 100.0
    sigma: PositiveFloat = 0.01
    """In units of the images' [-1, 1]. Below 0.05 bfloat16 would see little but its own rounding:
    there the penalty's two passes run in float32."""

    @property
    def lazy_interval(self) -> int | None:
        """Iterations between two steps of exact R1, or None."""
        return self.interval if self.kind == "exact" and self.gamma else None

    @model_validator(mode="after")
    def _known(self) -> R1Settings:
        if self.kind == "exact" and "gamma" not in self.model_fields_set:
            raise ValueError("gamma: give the strength of exact R1, 0 for none")
        return self


class FinetuneSettings(RunSettings):
    """D2O: a diffusion model becomes a one-step generator by GAN fine-tuning alone."""

    task: Literal["finetune"]
    init: UserPath
    """The diffusion model to start from: a run directory of `fasttrain pretrain`, or a model file:
    .safetensors, or a checkpoint of EDM's as it is."""
    freeze: FreezeLevel = 1
    """`none` is D2O; 1, 2 and 3 freeze ever more layers: D2O-F."""
    sigma: PositiveFloat = 80.0
    """Noise level of the single, or the first, step."""
    sigma_mid: PositiveFloat | None = None
    """Makes a two-step generator: the first step's image is brought back to this noise level along
    the line to its latents, and evaluated once more. The paper's option is 0.8."""
    gradient_through: GradientThrough = "both"
    """Which of two steps learn from the image's gradient. `last`: the first runs without, which
    halves the memory of the generator's step, and its noise level trains only in that both steps
    share all weights."""
    generator: OptimizerSettings
    discriminator: DiscriminatorSettings
    r1: R1Settings
    loss: Literal["non_saturating", "hinge"] = "non_saturating"
    """What generator and discriminator optimise."""
    reuse_fakes: bool = False
    """Whether the discriminator step judges the generator step's images, made by the generator as
    it was before that step, instead of fresh ones: one forward pass less."""

    def process_counts(self) -> list[int]:
        """Those whose shares hold whole groups of batch norm, or are equal parts of one."""
        group = self.discriminator.norm_group
        shares = {n: self.batch // n for n in super().process_counts()}
        return [n for n, share in shares.items() if share % group == 0 or group % share == 0]

    @model_validator(mode="after")
    def _in_between(self) -> FinetuneSettings:
        if self.sigma_mid is not None and self.sigma_mid >= self.sigma:
            raise ValueError(
                f"sigma_mid {self.sigma_mid} is not below sigma {self.sigma}; choose it in between"
            )
        if self.sigma_mid is None and self.gradient_through == "last":
            raise ValueError("gradient_through: last is for two steps; set sigma_mid, too")
        both = self.sigma_mid is not None and self.gradient_through == "both"
        if both and self.engine.zero_stage == 3:
            raise ValueError(
                "gradient_through: ZeRO 3 cannot take the gradient of weights that were used twice "
                "in one backward pass; set it to last, or engine.zero_stage to 2 at most"
            )
        return self

    @model_validator(mode="after")
    def _not_told(self) -> FinetuneSettings:
        if self.network.augment_dim:
            raise ValueError(
                "network.augment_dim: fine-tuning has no augmentation labels; remove it (the "
                "weights that a diffusion model has for them are left out)"
            )
        return self

    @model_validator(mode="after")
    def _groups_divide(self) -> FinetuneSettings:
        group = self.discriminator.norm_group
        for name, size in (("batch", self.batch), ("micro_batch", self.micro_batch)):
            if size is not None and size % group:
                raise ValueError(
                    f"discriminator.norm_group {group} does not divide {name} {size}; "
                    f"set discriminator.norm_group to a divisor of it"
                )
        return self
