"""Where an experiment makes its runs: `OUT/runs`, one directory each, made once and resumed.

lab = Lab(base=Path("runs/digits-edm"), recipe="digits-d2o-f", out=Path("findings"))
run = lab.tuned("level-1", seed=0, "freeze=1")
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.rates import flat
from fasttrain.checkpoints.saved import SavedRun
from fasttrain.checkpoints.stats import read_stats
from fasttrain.evaluation.result import hash_of
from fasttrain.models.files.model_file import ModelFile
from fasttrain.models.files.model_info import ModelInfo
from fasttrain.models.load import load_model, open_model
from fasttrain.settings import FinetuneSettings, PretrainSettings, RunSettings
from fasttrain.settings.data import DataSettings
from fasttrain.settings.gan import GanSettings
from fasttrain.settings.of_run import load_run_settings
from fasttrain.settings.recipes import load_settings
from fasttrain.settings.registry import load
from fasttrain.settings.trainings import TRAININGS
from fasttrain.system.errors import UserError
from fasttrain.system.processes import World
from fasttrain.training.finetune import finetune
from fasttrain.training.pretrain import pretrain

__all__ = ["Lab"]

POINTS = 8
"""Evaluations of a run."""
READING = {"streams", "order", "window", "workers"}
"""Settings of `data` that go with a recipe's batch; the others say which images there are."""


@dataclass(frozen=True)
class Lab:
    """The common part of all experiments.

    Attributes:
        base: the diffusion model: a run directory, a model file or a name of the shelf.
        recipe: of the fine-tunings; its data where `base` is not a run, which has its own.
        out: folder of runs and results. seeds: number of seeds of each fine-tuning.
        quick: an eighth of the recipe's images and two evaluations, to try the command.
    """

    base: Path
    recipe: str
    out: Path
    world: World
    seeds: int = 1
    quick: bool = False

    @cached_property
    def opened(self) -> SavedRun | ModelFile:
        """`base`, read once. Raises UserError when it cannot be read."""
        return open_model(self.base)

    @cached_property
    def described(self) -> ModelInfo:
        """What `base` is. Raises UserError when that is not a diffusion model."""
        opened = self.opened
        info = ModelInfo.of(opened) if isinstance(opened, SavedRun) else opened.info
        if info is None or info.training.precond != "edm":
            raise UserError(f"{self.base} is not a diffusion model: name one by --base")
        return info

    @property
    def pretraining(self) -> PretrainSettings | None:
        """Settings of the base model's run; None for a file or a model of the shelf."""
        settings = self.opened.settings if isinstance(self.opened, SavedRun) else None
        return settings if isinstance(settings, PretrainSettings) else None

    def teacher(self) -> Any:
        """The diffusion model's network, in eval mode."""
        return load_model(self.opened)[0]

    @cached_property
    def data(self) -> DataSettings:
        """Images of all trainings and of every comparison."""
        if isinstance(self.opened, SavedRun):
            return self.opened.settings.data
        return load_settings(self.recipe, [f"init={self.base}"], FinetuneSettings).data

    def settings(self, name: str, seed: int, *changes: str) -> FinetuneSettings:
        """Settings of a fine-tuning: the recipe, from `base` and its data, with changes."""
        common = [
            f"run={self.out / 'runs' / f'{name}-{seed}'}",
            f"init={self.base}",
            f"seed={seed}",
        ]
        data = self.data.model_dump(mode="json", exclude=READING)
        common += [
            f"data.{name}={json.dumps(value, ensure_ascii=False)}" for name, value in data.items()
        ]
        recipe = load_settings(self.recipe, [*common, *changes], FinetuneSettings)
        images = recipe.images // 8 if self.quick else recipe.images
        every = max(recipe.batch, images // (2 if self.quick else POINTS))
        pace = [f"images={images}", f"evaluate.every={every}", "sample.every=0"]
        return load_settings(self.recipe, [*common, *pace, *changes], FinetuneSettings)

    def tuned(self, name: str, seed: int, *changes: str) -> Path:
        """The directory of a finished fine-tuning: made, continued, or taken as it is."""
        settings = self.settings(name, seed, *changes)
        if self._unfinished(settings):
            finetune(settings, self.world)
        return settings.run

    def distilled(self, method: str, seed: int, *, beside_gan: bool = False) -> Path:
        """The directory of a finished distillation with what the recipe says of both."""
        name = f"{method}-gan" if beside_gan else method
        return self.trained("distill", name, seed, beside_gan=beside_gan, method=method)

    def trained(
        self, task: str, name: str, seed: int, *, beside_gan: bool = False, **own: Any
    ) -> Path:
        """The directory of a finished training of another kind, nothing frozen unless `own` says
        so, with what the recipe says of both, and its own settings."""
        schema = TRAININGS[task].schema
        like = self.settings("like", seed, "freeze=none").model_dump(mode="json")
        values = {field: like[field] for field in schema.model_fields if field in like}
        values |= {"task": task, "run": str(self.out / "runs" / f"{name}-{seed}"), **own}
        if beside_gan:
            values["gan"] = {field: like[field] for field in GanSettings.model_fields}
        settings = schema.model_validate(values)
        if self._unfinished(settings):
            load(f"fasttrain.training.{task}:{task}")(settings, self.world)
        return settings.run

    def pretrained(self, share: float) -> Path:
        """The directory of a pre-training like the base model's with a share of its images.

        Raises UserError when `base` is not a run of `fasttrain pretrain`.
        """
        base, trained = self.pretraining, self.described.images
        if base is None or trained is None:
            raise UserError(
                f"shorter pre-trainings repeat the base model's, which {self.base} does not say: "
                f"name a run of `fasttrain pretrain` by --base"
            )
        images = max(base.batch, round(share * trained / base.batch) * base.batch)
        run = self.out / "runs" / f"pretrained-{100 * share:.0f}-percent"
        short = {"run": run, "images": images}
        settings = base.model_copy(update=short)
        if self._unfinished(settings):
            pretrain(settings, self.world)
        return run

    def _unfinished(self, settings: RunSettings) -> bool:
        """Whether the run has to be made or continued. Raises UserError for a finished one of
        other settings."""
        newest = checkpoint.newest(settings.run / "checkpoints")
        if newest is None or newest.images < settings.images:
            return True
        was, wanted = (
            flat(each.model_dump(mode="json"))
            for each in (load_run_settings(settings.run), settings)
        )
        names = sorted(was.keys() | wanted.keys())
        other = [name for name in names if was.get(name) != wanted.get(name) and name != "run"]
        if other:
            raise UserError(
                f"{settings.run} was made with {other[0]}={was.get(other[0])!r}, which is now "
                f"{wanted.get(other[0])!r}: name another folder with --out"
            )
        return False

    def curve(self, run: Path) -> list[tuple[int, float]]:
        """(images, fd) of each evaluation of a run."""
        return [(line["images"], line["fd"]) for line in read_stats(run) if "fd" in line]

    def timed(self, run: Path) -> list[tuple[float, float]]:
        """(seconds, fd) of each evaluation of a run."""
        return [(line["seconds"], line["fd"]) for line in read_stats(run) if "fd" in line]

    @cached_property
    def hashes(self) -> dict[str, str]:
        """First digits of the SHA-256 of the base model's weights, and of the settings of a
        fine-tuning."""
        settings = self.settings("run", 0).model_dump_json(
            exclude={"run", "init"}, exclude_defaults=True
        )
        code = hashlib.sha256(settings.encode()).hexdigest()[:12]
        return {"base_weights": hash_of(self.teacher()), "settings": code}

    def about(self) -> dict[str, Any]:
        """The protocol that every result begins with; those of earlier versions have no hashes."""
        return {
            "base": self.base.name,
            "base_images": self.described.images,
            "recipe": self.recipe,
            "seeds": self.seeds,
            "quick": self.quick,
            **self.hashes,
        }
