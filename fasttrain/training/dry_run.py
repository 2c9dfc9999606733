"""`--dry-run`: the resolved settings of a recipe, what trains, and what is missing to start it.

    print(dry_run(settings, places))

Nothing is written, and nothing is read of a URL. All that is missing is found, not only the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.branch import trunk_of
from fasttrain.checkpoints.directory import check_directory
from fasttrain.data import open_stream
from fasttrain.discriminator.own import OWN
from fasttrain.evaluation.evaluate import Evaluator
from fasttrain.models.audit import audit_of, start_of
from fasttrain.models.features.backbone import backbone
from fasttrain.models.features.weights import find_weights
from fasttrain.settings import FinetuneSettings, PretrainSettings, RunSettings
from fasttrain.settings.generator import GeneratorSettings
from fasttrain.settings.marks import marked_yaml
from fasttrain.settings.of_run import load_run_settings
from fasttrain.settings.registry import SHELF
from fasttrain.system.errors import Unavailable, UserError
from fasttrain.system.processes import ONE_PROCESS
from fasttrain.training.run.boards import check_boards
from fasttrain_data import DataError
from fasttrain_data.fetching import is_url

__all__ = ["dry_run", "missing"]

SIZES = ("model_type", "img_channels", "model_channels", "channel_mult", "num_blocks")
"""Settings of a network that weights of another value of them do not fit."""


def dry_run(settings: RunSettings, places: Mapping[str, str]) -> str:
    """Settings as YAML with the user's own values marked, the audit, and what is missing.

    places: see `marked_yaml`.
    """
    parts = [marked_yaml(settings, places), audit_of(settings).table()]
    if settings.few_step is not None:
        parts.append(start_of(settings, settings.few_step.sigma))
    parts.append("")
    lines = missing(settings)
    if lines:
        parts += [f"not ready, {len(lines)} to do:", *(f"- {line}" for line in lines)]
    else:
        parts.append("ready to start")
    return "\n".join(parts)


def missing(settings: RunSettings) -> list[str]:
    """What keeps the settings from being trained here, a line each."""
    lines: dict[str, None] = {}
    for check in _checks(settings):
        try:
            check()
        except (UserError, DataError, Unavailable) as error:
            lines |= dict.fromkeys(str(error).splitlines())
        except OSError as error:
            lines[f"{error.filename}: {error.strerror}"] = None
    return list(lines)


def _checks(settings: RunSettings) -> Iterator[Callable[[], Any]]:
    yield lambda: check_directory(settings)
    yield lambda: check_boards(settings)
    begun = bool(checkpoint.steps(settings.run / "checkpoints"))
    if settings.from_ is not None and not begun:
        yield lambda: trunk_of(settings)
    elif isinstance(settings, GeneratorSettings | PretrainSettings) and not begun:
        init = settings.init
        if init is not None:
            yield partial(_check_init, settings, init)
    if not any(is_url(each.path) for each in settings.data.sets()):
        yield lambda: open_stream(settings, ONE_PROCESS).close()
        if settings.evaluate.every is not None:
            yield lambda: Evaluator(settings)
    if isinstance(settings, FinetuneSettings):
        for wanted in settings.discriminator.backbones:
            if wanted.weights != "random" and wanted.name != OWN:
                yield partial(find_weights, backbone(wanted.name).published, wanted.weights)


def _check_init(settings: GeneratorSettings | PretrainSettings, init: Path) -> None:
    """Whether a model is there, and of a run whether it is of this network; its weights are read
    when the training starts."""
    run = (init / "config.yaml").is_file()
    if run and not checkpoint.steps(init / "checkpoints"):
        raise UserError(f"{init} has no checkpoint yet: train it first")
    if run and isinstance(settings, GeneratorSettings):
        theirs, ours = (s.network.model_dump() for s in (load_run_settings(init), settings))
        differ = [
            f"{name} is {theirs[name]} there and {ours[name]} here"
            for name in SIZES
            if theirs[name] != ours[name]
        ]
        if differ:
            raise UserError(
                f"{init} is of another network: {'; '.join(differ)}; a recipe without `network` "
                "has the model's"
            )
    if not init.exists() and str(init) not in SHELF:
        raise UserError(
            f"no model at {init}: train one with `fasttrain pretrain`, or set init to a model file"
        )
