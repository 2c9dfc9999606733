"""`--dry-run`: the resolved settings of a recipe, what trains, and what is missing to start it.

    print(dry_run(settings, places))

Nothing is written, and nothing is read of a URL. All that is missing is found, not only the first:
every refusal of the trainings that needs no more than files, without a step of training. What needs
the GPU, other processes or the images themselves is found at the start.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.branch import trunk_of
from fasttrain.checkpoints.directory import check_directory
from fasttrain.checkpoints.saved import SavedRun
from fasttrain.data import storage_of
from fasttrain.discriminator.class_means import check_class_features
from fasttrain.discriminator.own import OWN
from fasttrain.evaluation.evaluate import USUAL, Evaluator
from fasttrain.evaluation.extractors import check_extractor
from fasttrain.evaluation.metrics.statistics import load_statistics
from fasttrain.models.audit import audit_of, start_of
from fasttrain.models.build import new_network
from fasttrain.models.features.backbone import backbone
from fasttrain.models.features.weights import find_weights
from fasttrain.models.files.model_file import ModelInfo, check_fit
from fasttrain.models.load import open_model, starting_weights
from fasttrain.models.second_time import check_second_time
from fasttrain.settings import (
    AdversarialSettings,
    BackboneSettings,
    DistillSettings,
    FinetuneSettings,
    FrechetSettings,
    MeanFlowSettings,
    PretrainSettings,
    RunSettings,
)
from fasttrain.settings.generator import GeneratorSettings
from fasttrain.settings.marks import marked_yaml
from fasttrain.settings.registry import SHELF
from fasttrain.settings.tasks import BesideGanSettings
from fasttrain.settings.trainings import training_of
from fasttrain.system.errors import Unavailable, UserError
from fasttrain.system.processes import ONE_PROCESS
from fasttrain.training.base_model import check_init
from fasttrain.training.continued import diffusion_weights
from fasttrain.training.latents import open_data
from fasttrain.training.run.boards import check_boards
from fasttrain_data import DataError
from fasttrain_data.fetching import is_url

__all__ = ["dry_run", "missing"]

SIZES = ("model_type", "img_channels", "label_dim", "model_channels", "channel_mult", "num_blocks")
"""Settings of a network that weights of another value of them do not fit."""


def dry_run(settings: RunSettings, places: Mapping[str, str]) -> str:
    """Settings as YAML with the user's own values marked, the audit, and what is missing.

    places: see `marked_yaml`.
    """
    parts = [marked_yaml(settings, places), audit_of(settings).table()]
    if settings.few_step is not None:
        parts.append(start_of(settings, settings.few_step.sigma))
    parts.append("")
    notes: list[str] = []
    lines = missing(settings, notes)
    parts += [f"note: {note}" for note in notes]
    if lines:
        parts += [f"not ready, {len(lines)} to do:", *(f"- {line}" for line in lines)]
    else:
        parts.append("ready to start")
    return "\n".join(parts)


def missing(settings: RunSettings, notes: list[str] | None = None) -> list[str]:
    """What keeps the settings from being trained here, a line each. notes: takes what is said at
    the start."""
    lines: dict[str, None] = {}
    for check in _checks(settings, [] if notes is None else notes):
        try:
            check()
        except (UserError, DataError, Unavailable) as error:
            lines |= dict.fromkeys(str(error).splitlines())
        except OSError as error:
            lines[f"{error.filename}: {error.strerror}"] = None
    return list(lines)


def _checks(settings: RunSettings, notes: list[str]) -> Iterator[Callable[[], Any]]:
    yield lambda: check_directory(settings)
    yield partial(_check_writable, settings.run)
    yield lambda: check_boards(settings)
    here = not any(is_url(each.path) for each in settings.data.sets())
    begun = bool(checkpoint.steps(settings.run / "checkpoints"))
    if settings.from_ is not None and not begun:
        yield lambda: trunk_of(settings)
    elif isinstance(settings, GeneratorSettings | PretrainSettings) and not begun:
        init = settings.init
        if init is not None:
            yield lambda: notes.extend(_check_init(settings, init, here))
    if here:
        yield lambda: open_data(settings, ONE_PROCESS).close()
        if settings.evaluate.every is not None:
            yield lambda: notes.extend(_check_evaluation(settings))
    if isinstance(settings, MeanFlowSettings):
        yield partial(_check_second_time, settings)
    for wanted in _backbones(settings):
        if wanted.weights != "random" and wanted.name != OWN:
            yield partial(find_weights, backbone(wanted.name).published, wanted.weights)
    for judged in settings.judges if isinstance(settings, FrechetSettings) else ():
        yield partial(check_extractor, judged.extractor, judged.weights)
        if judged.statistics is not None:
            yield partial(load_statistics, judged.statistics)
    judge = _adversarial(settings)
    if judge is not None and here and not begun:
        yield partial(check_class_features, judge)


def _check_evaluation(settings: RunSettings) -> list[str]:
    """A line about its cost, if there is something to say. Raises UserError for too few images."""
    samples = len(Evaluator(settings).seeds)
    if samples <= USUAL:
        return []
    return [
        f"evaluate.samples={samples}: all pairs are compared, on the CPU of process 0 while the "
        f"others wait, which takes {(samples / USUAL) ** 2:.0f} times as long as {USUAL:,} would; "
        f"`fasttrain evaluate` compares more after training, on all GPUs"
    ]


def _check_second_time(settings: RunSettings) -> None:
    with torch.device("meta"):
        check_second_time(new_network("one_step", settings.network).model)


def _check_writable(path: Path) -> None:
    """Raises UserError when a run directory cannot be made, or written to."""
    above = next(place for place in (path, *path.parents) if place.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        why = "not writable" if above.is_dir() else "no folder"
        raise UserError(f"cannot write the run directory {path}: {above} is {why}")


def _adversarial(settings: RunSettings) -> AdversarialSettings | None:
    """The settings of a training that has a discriminator."""
    if isinstance(settings, BesideGanSettings) and settings.gan is None:
        return None
    return cast(AdversarialSettings, settings) if hasattr(settings, "discriminator") else None


def _backbones(settings: RunSettings) -> list[BackboneSettings]:
    """The feature networks whose weights the training reads."""
    judge = _adversarial(settings)
    wanted = [] if judge is None else list(judge.discriminator.backbones)
    if isinstance(settings, FinetuneSettings) and settings.reward is not None:
        wanted.append(settings.reward.features)
    if isinstance(settings, DistillSettings) and settings.distance == "features":
        wanted.append(settings.features)
    return wanted


def _check_init(
    settings: GeneratorSettings | PretrainSettings, path: Path, here: bool
) -> list[str]:
    """What is said at the start of the model that `init` names. here: whether the data are; a
    model that is compared with data elsewhere is not.

    Raises UserError when there is none, or it is not of this network and these data.
    """
    if not path.exists() and str(path) not in SHELF:
        raise UserError(
            f"no model at {path}: train one with `fasttrain pretrain`, or set init to a model file"
        )
    if (path / "config.yaml").is_file() and not checkpoint.steps(path / "checkpoints"):
        raise UserError(f"{path} has no checkpoint yet: train it first")
    init = open_model(path)
    info = ModelInfo.of(init) if isinstance(init, SavedRun) else init.info
    with torch.device("meta"):
        kind = training_of(settings).precond
        network = new_network(kind, settings.network)
    if isinstance(settings, PretrainSettings):
        if not here:
            return []
        index = storage_of(settings.data, settings.network).index()
        weights, line = diffusion_weights(settings, init, network, index)
        check_fit(network.state_dict(), weights, init.path)
        return [line]
    ours = settings.network.model_dump()
    theirs = ours if info is None else info.network.model_dump()
    differ = [
        f"{name} is {theirs[name]} there and {ours[name]} here"
        for name in SIZES
        if theirs[name] != ours[name]
    ]
    if differ:
        raise UserError(
            f"{path} is of another network: {'; '.join(differ)}; a recipe without `network` "
            "has the model's"
        )
    check_fit(network.state_dict(), starting_weights(network, init), init.path)
    line = check_init(settings, init) if here else ""
    return [line] if line else []
