"""Settings: frozen, typed, checked at once, with "did you mean".

A recipe is a YAML file in `configs/` (found by name in a checkout and in an installed wheel) or any
path. It may build on another with `extends: NAME`; dotted overrides come last:

    settings = load_settings("digits-d2o-f", ["images=3000", "r1.gamma=0.1"], FinetuneSettings)

All mistakes of one kind are reported in one go, a line each, before anything else is done: first
what is no setting at all, then wrong values, then settings that contradict each other.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from fasttrain.errors import UserError
from fasttrain.freezing import FreezeLevel

__all__ = [
    "FinetuneSettings",
    "NetworkSettings",
    "PretrainSettings",
    "RunSettings",
    "load_run_settings",
    "load_settings",
    "recipe_names",
    "to_yaml",
]


def _absolute(path: Path) -> Path:
    """A run names its files for good, wherever a later command is started."""
    return Path(os.path.abspath(path.expanduser()))


UserPath = Annotated[Path, AfterValidator(_absolute)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Settings(BaseModel):
    """Frozen, keyword-only, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class DataSettings(Settings):
    """Where the images are and how they are read."""

    path: UserPath
    """Folder of shards with an `index.json`, as `fasttrain-data convert` writes it."""
    streams: PositiveInt = 4
    """Logical streams that the epoch is dealt to; the world size must divide it. Fine-tuning
    ignores it: there it is batch / norm_group."""


class NetworkSettings(Settings):
    """The U-Net and its preconditioning; field names are those of the network's constructor."""

    model_type: Literal["SongUNet", "DhariwalUNet"] = "SongUNet"
    img_resolution: PositiveInt
    img_channels: PositiveInt = 3
    label_dim: NonNegativeInt = 0
    augment_dim: NonNegativeInt = 0
    model_channels: PositiveInt = Field(128, multiple_of=4)
    channel_mult: tuple[PositiveInt, ...] = Field((1, 2, 2, 2), min_length=1)
    channel_mult_emb: PositiveInt = 4
    num_blocks: PositiveInt = 4
    attn_resolutions: tuple[PositiveInt, ...] = (16,)
    dropout: float = Field(0.0, ge=0, lt=1)
    label_dropout: float = Field(0.0, ge=0, lt=1)
    embedding_type: Literal["positional", "fourier", "zero"] = "positional"
    channel_mult_noise: PositiveInt = 1
    encoder_type: Literal["standard", "skip", "residual"] = "standard"
    decoder_type: Literal["standard", "skip"] = "standard"
    resample_filter: tuple[PositiveInt, ...] = Field((1, 1), min_length=2)

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for `fasttrain.networks.build_network`, only those its type takes."""
        values = self.model_dump()
        if self.model_type == "DhariwalUNet":
            for name in SONG_ONLY:
                values.pop(name)
        return values

    @model_validator(mode="after")
    def _song_only(self) -> NetworkSettings:
        wrong = [name for name in SONG_ONLY if name in self.model_fields_set]
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
    """Adam. Weight decay and clipping are not used by any published recipe."""

    rate: PositiveFloat
    """Learning rate."""
    betas: tuple[Beta, Beta] = (0.0, 0.99)
    eps: PositiveFloat = 1e-8
    ramp_up: NonNegativeInt = 0
    """Images over which the rate grows linearly from 0."""


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
    extractor: Literal["lite2"] = "lite2"
    samples: PositiveInt | None = None
    """Generated and real images compared; half of the data set when not given."""
    components: PositiveInt = 64
    """Leading principal components of the reference set that `fd` looks at."""
    batch: PositiveInt = 256


class SampleSettings(Settings):
    """The grid of fixed seeds that is drawn as training goes."""

    every: NonNegativeInt = 0
    """Images between two grids; 0: only at the end."""
    count: PositiveInt = 64


class CheckpointSettings(Settings):
    every: PositiveInt
    """Images between two checkpoints; each evaluation writes one besides."""
    keep: PositiveInt = 2
    """The newest ones kept; the best by `fd` is kept besides."""


class EngineSettings(Settings):
    """How the work is spread over processes."""

    kind: Literal["auto", "local", "deepspeed"] = "auto"
    """`auto`: DeepSpeed when several processes were launched, else plain PyTorch."""
    zero_stage: Literal[0, 1, 2] = 1
    deepspeed: dict[str, Any] = {}
    """Added to the generated DeepSpeed JSON; keys that fasttrain sets itself are refused."""

    @model_validator(mode="after")
    def _not_ours(self) -> EngineSettings:
        owned = sorted(OWNED & set(self.deepspeed))
        if owned:
            raise ValueError(f"deepspeed: {', '.join(owned)}: fasttrain sets this; remove it")
        return self


OWNED = {
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"),
    *("managed_gradient_accumulation", "gradient_clipping", "optimizer", "scheduler"),
    *("fp16", "bf16", "bfloat16", "amp", "torch_autocast", "data_types"),
    *("communication_data_type", "zero_optimization", "zero_allow_untested_optimizer"),
}
"""Keys of DeepSpeed's JSON that follow from our own settings, or that would change what is
computed."""


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
    engine: EngineSettings = EngineSettings()
    kernels: Literal["auto", "triton", "reference"] = "auto"
    """`auto`: Triton on a GPU, plain PyTorch elsewhere."""

    @property
    def streams(self) -> int:
        return self.data.streams

    @model_validator(mode="after")
    def _batch_divides(self) -> RunSettings:
        if self.batch % self.streams:
            raise ValueError(f"batch {self.batch} is not a multiple of {self.streams} streams")
        return self


class PretrainSettings(RunSettings):
    """Diffusion training with the EDM loss."""

    task: Literal["pretrain"]
    optimizer: OptimizerSettings
    p_mean: float = -1.2
    """Mean of ln sigma."""
    p_std: PositiveFloat = 1.2
    """Standard deviation of ln sigma."""


class BackboneSettings(Settings):
    """One frozen feature network of the discriminator."""

    name: Literal["lite0"] = "lite0"
    resolution: PositiveInt = Field(default=224, multiple_of=32)
    """Smaller images are resized to this; larger ones are taken as they are."""


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
    """Consecutive images that batch norm takes its statistics over."""
    class_embedding: Literal["class_means", "random"] = "class_means"
    """Where each head's class embedding starts: mean features of the classes, or normal noise."""
    optimizer: OptimizerSettings

    @model_validator(mode="after")
    def _distinct(self) -> DiscriminatorSettings:
        names = [backbone.name for backbone in self.backbones]
        if len(set(names)) != len(names):
            raise ValueError(f"backbones: {', '.join(names)}: name each one once")
        return self


class R1Settings(Settings):
    """Lazy R1: every `interval` iterations, gamma/2 * interval * penalty, a step of its own."""

    gamma: NonNegativeFloat
    interval: PositiveInt = 16


class FinetuneSettings(RunSettings):
    """D2O: a diffusion model becomes a one-step generator by GAN fine-tuning alone."""

    task: Literal["finetune"]
    init: UserPath
    """The diffusion model to start from: a run directory of `fasttrain pretrain`."""
    freeze: FreezeLevel = 1
    """`none` is D2O; 1, 2 and 3 freeze ever more layers: D2O-F."""
    sigma: PositiveFloat = 80.0
    """Noise level of the single step."""
    generator: OptimizerSettings
    discriminator: DiscriminatorSettings
    r1: R1Settings

    @property
    def streams(self) -> int:
        return max(1, self.batch // self.discriminator.norm_group)

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


AnySettings = TypeVar("AnySettings", bound=RunSettings)


def recipe_folder() -> Path:
    """`configs/` of the checkout, or its copy inside the installed package."""
    inside = Path(str(resources.files("fasttrain"))) / "configs"
    return inside if inside.is_dir() else inside.parent.parent / "configs"


def recipe_names() -> list[str]:
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def load_settings(recipe: str, overrides: Iterable[str], schema: type[AnySettings]) -> AnySettings:
    """Settings of a recipe by name or path, with `a.b=c` overrides on top.

    Raises UserError, a line for each mistake: unknown recipe or key (with the nearest known one),
    wrong type, settings that contradict each other, a recipe of another command.
    """
    values = _read_recipe(recipe, seen=())
    for override in overrides:
        _apply_override(values, override)
    return _validate(values, schema, recipe)


def load_run_settings(run: Path) -> PretrainSettings | FinetuneSettings:
    """The resolved settings that a run directory was made with."""
    path = run / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run} is not a run directory: it has no config.yaml")
    values = _read_yaml(path)
    if values.get("task") == "finetune":
        return _validate(values, FinetuneSettings, str(path))
    return _validate(values, PretrainSettings, str(path))


def to_yaml(settings: BaseModel) -> str:
    """Resolved settings as YAML; reading it back gives the same settings."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)


def _read_recipe(recipe: str, seen: Sequence[str]) -> dict[str, Any]:
    path = Path(recipe)
    if not path.is_file():
        path = recipe_folder() / f"{recipe}.yaml"
    if not path.is_file():
        known = recipe_names()
        raise UserError(
            f"no recipe {recipe!r}{_did_you_mean(recipe, known)}; "
            f"known: {', '.join(known)}; or give the path of a YAML file"
        )
    values = _read_yaml(path)
    base = values.pop("extends", None)
    if base is None:
        return values
    if base in seen:
        raise UserError(f"{path}: extends {base!r}, which extends it in turn")
    return _merge(_read_recipe(str(base), (*seen, recipe)), values)


class _Loader(yaml.SafeLoader):
    """YAML 1.2 numbers (`5e-4` is one, which PyYAML takes for text), and dates are plain text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _parse_yaml(text: str) -> Any:
    return yaml.load(text, _Loader)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = _parse_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file; a recipe is YAML") from None
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f" line {place.line + 1}" if place else ""
        problem = getattr(error, "problem", None) or "cannot be read"
        raise UserError(f"{path}:{line} is not valid YAML: {problem}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a recipe is a mapping of settings, this is not one")
    return values


def _merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _apply_override(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise UserError(f"{override!r} is not an override: write it as a.b=value")
    *parents, last = name.split(".")
    node: Any = values
    for parent in parents:
        node = node.setdefault(parent, {}) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        raise UserError(f"{override!r}: {'.'.join(parents)} holds a single value, not settings")
    try:
        node[last] = _parse_yaml(text)
    except yaml.YAMLError:
        raise UserError(f"{override!r}: the value is not valid YAML") from None


def _validate(values: Mapping[str, Any], schema: type[AnySettings], source: str) -> AnySettings:
    task = schema.model_fields["task"].annotation.__args__[0]  # type: ignore[union-attr]
    if values.get("task", task) != task:
        raise UserError(
            f"{source} is a recipe for `fasttrain {values['task']}`, not for `fasttrain {task}`"
        )
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        lines = [_explain(item, schema) for item in _causes(error.errors())]
        raise UserError("\n".join(f"{source}: {line}" for line in lines)) from None


def _causes(errors: list[Any]) -> list[Any]:
    """Without those of a list's length that only follow from a mistake inside the list."""
    places = [error["loc"] for error in errors]

    def follows(error: Any) -> bool:
        here = error["loc"]
        inner = any(len(p) > len(here) and p[: len(here)] == here for p in places)
        return inner and error["type"] in ("too_short", "too_long")

    return [error for error in errors if not follows(error)]


def _explain(item: Any, schema: type[BaseModel]) -> str:
    name = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = _fields_at(schema, item["loc"][:-1])
        return f"unknown key {name}{_did_you_mean(str(item['loc'][-1]), known)}"
    if item["type"] == "missing":
        return f"{name} is missing"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{name}: {message}" if name else message
    return f"{name}: {message[0].lower()}{message[1:]}, not {item['input']!r}"


def _fields_at(schema: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """Names of the fields of the settings found at a location of `schema`."""
    model: Any = schema
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        inner = [a for a in getattr(annotation, "__args__", ()) if hasattr(a, "model_fields")]
        model = inner[0] if inner else annotation
    return list(model.model_fields)


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f": did you mean {close[0]}?" if close else ""
