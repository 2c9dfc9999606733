"""`fasttrain new`: from a folder of images to two recipes and the next command.

It looks at the images, makes shards of them where they are none, proposes a resolution and a
network, measures both trainings for seconds, and writes the recipes. From then on these are the
user's files.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fasttrain.analysis.proposal.choices import LARGEST, Choice, Choices, choose, resolution_for
from fasttrain.analysis.proposal.measured import Pace, fitted
from fasttrain.analysis.proposal.recipes import (
    Names,
    Schedule,
    finetune_recipe,
    pretrain_recipe,
    schedule_for,
)
from fasttrain.models.load import network_of_model
from fasttrain.settings import FinetuneSettings, PretrainSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.errors import UserError
from fasttrain.system.files import write_atomic
from fasttrain_data import DataError, load_index, run_conversion
from fasttrain_data.index import INDEX_NAME
from fasttrain_data.options import Options
from fasttrain_data.progress import progress_bar
from fasttrain_data.summary import left_out
from fasttrain_data.survey import Survey, look_at

__all__ = ["Request", "new"]

SHARDS = 64
"""Shards of a small set: streams of a batch, and processes, take them apart."""
SPARED = 0.02
"""Share of unreadable images that conversion leaves out unasked."""
LEAST = {"pretrain": 20_000, "finetune": 8_000}
MOST = {"pretrain": 20_000_000, "finetune": 2_000_000}
"""Bounds of the images to train for."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user says.

    Attributes:
        name: of the recipes.
        data: a folder or file of images, or a shard set.
        init: a model to start from; then there is no pre-training.
        resolution: pixels a side; proposed when None.
        hours: of pre-training; fine-tuning gets half of it.
        out: folder of the recipes, of `data/` and of `runs/`.
    """

    name: str
    data: str
    init: Path | None = None
    resolution: int | None = None
    hours: float = 1.0
    out: Path = Path()
    force: bool = False
    measured: bool = True

    @property
    def shards(self) -> Path:
        """Where the images become a shard set."""
        return self.out / "data" / self.name


def new(request: Request) -> list[Path]:
    """Write the recipes, and say what was seen, chosen and is next; returns their paths in order.

    Raises UserError and DataError for mistakes in the request and the images, before anything is
    written.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,80}", request.name):
        raise UserError(f"{request.name!r}: name the recipes with letters, digits, - and _")
    tasks = ["finetune"] if request.init else ["pretrain", "finetune"]
    paths = {
        task: request.out / f"{request.name}-{'edm' if task == 'pretrain' else 'd2o-f'}.yaml"
        for task in tasks
    }
    there = [str(path) for path in paths.values() if path.exists()]
    if there and not request.force:
        raise UserError(f"{there[0]} exists: choose another name, or replace it with --force")
    gpu = torch.cuda.is_available()
    with progress_bar() as progress, _options_named(request):
        survey = look_at(request.data, progress)
    resolution, channels = _size(request, survey, gpu)
    size = int(resolution.value)
    for line in survey.lines():
        print(_with_command(request, line, size=size, force=True))
    for note in survey.notes:
        said = _with_command(request, note.removeprefix("warning: "), size=size, force=True)
        print(f"note: {said}")
    survey = replace(survey, channels=channels)
    choices = choose(survey, resolution, gpu=gpu)
    data = _converted(request, survey, choices)
    index = load_index(data)
    # Files that cannot be read are counted until here, and evaluations need half of what is there.
    choices = choose(replace(survey, images=index.images), resolution, gpu=gpu)
    about = (f"{index.images:,} images of {request.data}, at {data}",)
    runs = request.out / "runs"
    init = str(request.init or runs / f"{request.name}-edm")
    names = Names(request.name, str(data), str(runs), init, about)
    request.out.mkdir(parents=True, exist_ok=True)
    schedules = {}
    for task in paths:
        pace, choices = _measured(task, request, names, choices)
        schedules[task] = _schedule(task, request, choices, pace)
    for task, path in paths.items():  # after what takes long: both, or none
        write_atomic(path, _recipe(task, names, choices, schedules[task]))
        print(f"{path}: {schedules[task].images:,} images, {schedules[task].time()} here")
    _next(request, list(paths.values()))
    return list(paths.values())


def _size(request: Request, survey: Survey, gpu: bool) -> tuple[Choice, int]:
    """The resolution and the channels: the user's, those of the model to start from, the set's, or
    proposed ones."""
    if request.init is not None:
        network = network_of_model(request.init)
        classes = len(survey.classes) if len(survey.classes) > 1 else 0
        if network.label_dim not in (0, classes):
            raise UserError(
                f"{request.init} has {network.label_dim} classes, and {request.data} {classes}"
            )
        side = network.img_resolution
        if request.resolution not in (None, side):
            raise UserError(
                f"--resolution {request.resolution}: {request.init} makes images of {side} pixels"
            )
        if survey.shards and (size := survey.square or survey.sides[0]) != side:
            raise UserError(
                f"the shards of {request.data} are {size}x{size}, and {request.init} makes images "
                f"of {side} pixels: name the images that the shards were made of"
            )
        return Choice(side, "that of the model"), network.img_channels
    if survey.shards:
        size = survey.square or survey.sides[0]
        if request.resolution not in (None, size):
            raise UserError(
                f"--resolution {request.resolution}: the shards of {request.data} are {size}x{size}"
            )
        return Choice(size, "that of the shards"), survey.channels
    if request.resolution is not None:
        return Choice(request.resolution, "as --resolution says"), survey.channels
    return resolution_for(survey, gpu), survey.channels


@contextmanager
def _options_named(request: Request) -> Iterator[None]:
    """Errors of a conversion, whose remedy may be an option of its command."""
    try:
        yield
    except DataError as error:
        raise DataError(_with_command(request, str(error))) from error


def _with_command(request: Request, text: str, *, size: int = 0, force: bool = False) -> str:
    """What is said, and where it names an option that `new` lacks, the commands that have it."""
    option = re.search(r"(?<![\w-])--(?!resolution|force)[a-z][a-z-]+", text)
    if option is None or "fasttrain-data convert" in text:
        return text
    size = size or request.resolution or LARGEST[torch.cuda.is_available()]
    data, out = shlex.quote(request.data), shlex.quote(str(request.shards))
    more = " --force" if force else ""
    own = "" if request.out == Path() else f" --out {shlex.quote(str(request.out))}"
    own += "" if request.init is None else f" --init {shlex.quote(str(request.init))}"
    return (
        f"{text}. {option[0]} belongs to `fasttrain-data convert {data} {out} --resolution "
        f"{size}{more}`; then: `fasttrain new {request.name} --data {out}{own}{more}`"
    )


def _converted(request: Request, survey: Survey, choices: Choices) -> Path:
    """The shard set: the user's, or one that is made beside the recipes."""
    if survey.shards:
        return Path(request.data)
    out = request.shards
    if out.resolve().is_relative_to(Path(request.data).resolve()):
        raise UserError(f"{out}, for the shards, is in {request.data}: name another --out")
    per_shard = min(1000, max(survey.images // SHARDS, 1))
    options = Options(
        resolution=choices.network["img_resolution"].value,
        channels=choices.network["img_channels"].value,
        images_per_shard=per_shard,
    )
    spared = len(survey.unreadable) + int(SPARED * survey.images)
    out.parent.mkdir(parents=True, exist_ok=True)
    with progress_bar() as progress, _options_named(request):
        try:
            done = run_conversion(request.data, out, options, max_bad=spared, progress=progress)
        except DataError as error:
            if not (out / INDEX_NAME).exists():
                raise
            raise UserError(
                f"{out} holds another shard set: choose another name than {request.name}, train "
                f"from that set with --data {out}, or remove it"
            ) from error
    index = done.index
    size = f"{index.resolution}x{index.resolution}"
    print(f"{out}: {index.images:,} images of {size} in {len(index.shards)} shards")
    for note in done.notes:
        if note not in survey.notes:
            said = _with_command(request, note, size=index.resolution, force=True)
            print(f"note: {said}")
    if done.bad_files:
        said = left_out(done.bad_files)
        print(_with_command(request, said, size=index.resolution, force=True))
    return out


def _recipe(task: str, names: Names, choices: Choices, schedule: Schedule) -> str:
    write = pretrain_recipe if task == "pretrain" else finetune_recipe
    return write(names, choices, schedule)


def _measured(
    task: str, request: Request, names: Names, choices: Choices
) -> tuple[Pace | None, Choices]:
    """The pace of this machine, with choices that fit its GPU."""
    if not request.measured:
        return None, choices
    batch = getattr(choices, task)["batch"].value
    draft = schedule_for(None, 0, batch, LEAST[task], MOST[task])
    pace, micro = _pace(task, _recipe(task, names, choices, draft), request, choices)
    if micro is None:
        return pace, choices
    print(f"note: {task}: {batch} images at once do not fit this GPU's memory: micro_batch {micro}")
    return pace, choices.in_parts(task, micro)


def _schedule(task: str, request: Request, choices: Choices, pace: Pace | None) -> Schedule:
    """How long to train: what fits into the user's hours at the pace of this machine."""
    least, most = LEAST[task], MOST[task]
    hours = request.hours * (1.0 if task == "pretrain" else 0.5)
    schedule = schedule_for(pace, hours, getattr(choices, task)["batch"].value, least, most)
    if pace is not None and pace.images_per_second * 3600 * hours < least:
        print(
            f"note: {task} takes {schedule.time()}, more than --hours {request.hours:g} allows: "
            f"fewer images than {schedule.images:,} show nothing"
        )
    return schedule


def _pace(task: str, text: str, request: Request, choices: Choices) -> tuple[Pace, int | None]:
    """Measured with the recipe's own text, so that it is known to be valid, too; and the
    micro-batch that fits, where the batch does not."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    draft = request.out / f".{request.name}-{task}.yaml"
    request.out.mkdir(parents=True, exist_ok=True)
    write_atomic(draft, text)
    try:
        if task == "pretrain":
            settings: Any = load_settings(str(draft), [], PretrainSettings)
        else:
            network = {name: choice.value for name, choice in choices.network.items()}
            if request.init is not None:
                network = network_of_model(request.init).model_dump(mode="json")
            network["augment_dim"] = 0
            settings = load_settings(
                str(draft), [f"network={json.dumps(network)}"], FinetuneSettings
            )
    finally:
        draft.unlink(missing_ok=True)
    pace, micro = fitted(settings, device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"
    print(
        f"{task} on {where}: {pace.images_per_second:.3g} images/s, {pace.gigabytes:.1f} GB",
        flush=True,
    )
    return pace, micro


def _next(request: Request, paths: list[Path]) -> None:
    first, *rest = [
        f"fasttrain {'finetune' if path.stem.endswith('-d2o-f') else 'pretrain'} "
        f"{shlex.quote(str(path))}"
        for path in paths
    ]
    print(f"next: {first}")
    for command in rest:
        print(f"then: {command}")
    run = shlex.quote(str(request.out / "runs" / f"{request.name}-d2o-f"))
    print(f"then: fasttrain sample {run} --out {request.name}.png")
