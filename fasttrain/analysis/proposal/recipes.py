"""The text of a new pair of recipes: every choice with its reason in a comment.

text = pretrain_recipe(names, choices, schedule)
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fasttrain.analysis.proposal.choices import Choice, Choices
from fasttrain.analysis.proposal.measured import Pace
from fasttrain.settings.recipes import recipe_folder

__all__ = ["Names", "Schedule", "finetune_recipe", "pretrain_recipe", "schedule_for"]

SCHEMA = "# yaml-language-server: $schema={}\n"
"""With this line an editor completes and checks settings."""
WIDTH = 46
"""Column of the comments."""


@dataclass(frozen=True)
class Names:
    """What the recipes are called, and what they name.

    Attributes:
        recipe: `photos`: `photos-edm.yaml` and `photos-d2o-f.yaml`.
        data: path of the shard set.
        runs: folder of the runs.
        init: the model that fine-tuning starts from: the first recipe's run, or the user's.
        about: lines about the data.
    """

    recipe: str
    data: str
    runs: str
    init: str
    about: tuple[str, ...] = ()


@dataclass(frozen=True)
class Schedule:
    """How long to train, and how often to look.

    Attributes:
        pace: None where nothing was measured.
    """

    images: int
    every: int
    report: int
    pace: Pace | None = None

    def time(self) -> str:
        """The time that it takes on this machine, in words."""
        if self.pace is None:
            return "not measured"
        hours = self.pace.hours(self.images)
        return f"{hours:.1f} h" if hours >= 1 else f"{max(round(60 * hours), 1)} min"


def schedule_for(pace: Pace | None, hours: float, batch: int, least: int, most: int) -> Schedule:
    """Images that take about `hours` at a measured pace, within bounds; `least` without one."""
    images = least if pace is None else pace.images_per_second * 3600 * hours
    images = min(max(images, least), most)
    step = 10 ** max(len(str(int(images))) - 2, 0)
    whole = max(int(images // step * step) // batch, 1) * batch
    every = max(whole // 8 // batch, 1) * batch
    return Schedule(whole, every, max(every // 8 // batch, 1) * batch, pace)


def pretrain_recipe(names: Names, choices: Choices, schedule: Schedule) -> str:
    """The recipe of a diffusion model."""
    name = f"{names.recipe}-edm"
    rows = {
        "task": Choice("pretrain"),
        "run": Choice(f"{names.runs}/{name}", "all that is written; the same command resumes it"),
        "data": Choice({"path": names.data}),
        "network": choices.network,
        **_trained(choices.pretrain, schedule),
        "evaluate": _evaluation(choices, None, "none in the loop: 35 network evaluations an image"),
    }
    return _head(f"Pre-training: a diffusion model of {names.recipe}.", name, names, schedule) + (
        _rows(rows)
    )


def finetune_recipe(names: Names, choices: Choices, schedule: Schedule) -> str:
    """The recipe that turns it into a one-step generator; its network is that of `init`."""
    name = f"{names.recipe}-d2o-f"
    rows = {
        "task": Choice("finetune"),
        "run": Choice(f"{names.runs}/{name}", "all that is written; the same command resumes it"),
        "init": Choice(names.init, "the diffusion model, whose network this has"),
        "data": Choice({"path": names.data}),
        **_trained(choices.finetune, schedule),
        "evaluate": _evaluation(choices, schedule.every, "images between two evaluations"),
    }
    return _head(f"D2O-F: {names.recipe} in one step.", name, names, schedule) + _rows(rows)


def _trained(choices: Mapping[str, Choice], schedule: Schedule) -> dict[str, Any]:
    return {
        **choices,
        "images": Choice(schedule.images, f"to train for: {schedule.time()} on this machine"),
        "report_every": Choice(schedule.report, "images between two lines of numbers"),
        "checkpoint": Choice({"every": schedule.every}, "all that a stopped run goes on with"),
        "sample": Choice({"every": schedule.every}, "a grid of images from fixed seeds"),
    }


def _evaluation(choices: Choices, every: int | None, why: str) -> dict[str, Choice]:
    return {"every": Choice(every, why), **choices.evaluate}


def _head(title: str, name: str, names: Names, schedule: Schedule) -> str:
    verb = "finetune" if name.endswith("d2o-f") else "pretrain"
    path = Path(names.runs).parent / f"{name}.yaml"  # its own paths begin where it was written from
    lines = [title, f"  fasttrain {verb} {shlex.quote(str(path))}"]
    if schedule.pace is not None:
        pace = schedule.pace
        lines.append(
            f"Time: {schedule.time()}, at {pace.images_per_second:.3g} images/s and "
            f"{pace.gigabytes:.1f} GB, measured on this machine by `fasttrain new`."
        )
    lines += [f"Data: {line}" for line in names.about]
    return "".join(f"# {line}\n" for line in lines) + SCHEMA.format(
        recipe_folder() / "schema" / f"{verb}.json"
    )


def _rows(values: Mapping[str, Any], indent: str = "") -> str:
    """Lines of YAML; a mapping of choices is a block, a choice one line with its comment."""
    lines = []
    for key, choice in values.items():
        if isinstance(choice, Mapping):
            lines.append(f"{indent}{key}:\n{_rows(choice, indent + '  ')}")
            continue
        text = yaml.safe_dump(
            choice.value, default_flow_style=True, width=10_000, sort_keys=False, allow_unicode=True
        )
        line = f"{indent}{key}: {text.removesuffix(chr(10)).removesuffix(chr(10) + '...')}"
        if choice.why and len(line) < WIDTH:
            line = f"{line:<{WIDTH}}# {choice.why}"
        elif choice.why:
            line = f"{indent}# {choice.why}\n{line}"
        lines.append(f"{line}\n")
    return "".join(lines)
