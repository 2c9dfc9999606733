"""The commands as functions, for notebooks and scripts: `import fasttrain as ft`.

    model = ft.load("fashion-mnist")                  # or a run directory, or any model file
    images = model.sample(seeds=range(64))            # [64, 1, 28, 28] in [-1, 1]
    model.grid("grid.png", classes="Bag")

    settings = ft.recipe("digits-d2o-f", images=3000, r1={"gamma": 0.1})
    model = ft.finetune(settings)                     # resumes, as the command does
    print(ft.evaluate(model)["rows"]["one_step_after"]["metrics"]["fd"])

Mistakes raise `fasttrain.system.errors.UserError`, in the words of the command line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fasttrain.checkpoints.saved import SavedRun
from fasttrain.evaluation.kept import card_quality
from fasttrain.evaluation.measure import evaluate_model
from fasttrain.evaluation.request import Request
from fasttrain.evaluation.summary import evaluate_run
from fasttrain.models.export import Format, export_model
from fasttrain.models.files.model_file import ModelFile, ModelInfo
from fasttrain.models.load import load_model, open_model
from fasttrain.models.precision import Precision, compute_in, faster
from fasttrain.sampling.generate import Tile, draw
from fasttrain.sampling.pictures import save_grid
from fasttrain.sampling.playground import build_page, export_page
from fasttrain.sampling.preview import preview_png
from fasttrain.sampling.sample import class_numbers
from fasttrain.sampling.sampler import Sampler
from fasttrain.settings import FinetuneSettings, PretrainSettings, RunSettings
from fasttrain.settings.recipes import load_settings, written
from fasttrain.settings.trainings import TRAININGS
from fasttrain.system.errors import UserError
from fasttrain.system.processes import start
from fasttrain.training.finetune import finetune as run_finetune
from fasttrain.training.pretrain import pretrain as run_pretrain
from fasttrain_kernels import using

__all__ = ["Model", "evaluate", "finetune", "load", "pretrain", "recipe"]


@dataclass(frozen=True)
class Model:
    """A diffusion model or a few-step generator, ready to make images.

    Attributes:
        source: the run at a checkpoint, or the file, that it was loaded from.
        path: what `load` was given.
        vae: the autoencoder of a model of latents; None: the run's.
    """

    source: SavedRun | ModelFile
    path: Path
    vae: Path | None = None

    @cached_property
    def _loaded(self) -> tuple[Any, ModelInfo]:
        network, info = load_model(self.source, vae=self.vae)
        return network.to("cuda" if torch.cuda.is_available() else "cpu"), info

    @property
    def network(self) -> Any:
        """The network in eval mode: called with x, sigma and class labels, it gives the image."""
        return self._loaded[0]

    @property
    def info(self) -> ModelInfo:
        """What it is: its network's settings, its noise levels, the images that it has seen."""
        return self._loaded[1]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of its classes, where they are known."""
        return self.info.classes

    def sample(
        self,
        seeds: Iterable[int] = range(64),
        *,
        classes: int | str | Iterable[int | str] | None = None,
        steps: int | None = None,
        batch: int = 256,
        precision: Precision = "float32",
    ) -> Tensor:
        """Images [N, C, H, W], float32, about [-1, 1], on the CPU; seed s gives the same image as
        on the command line, in any batch.

        classes: a name or number for all, or one for each seed; by default the classes in turn.
        steps: Heun steps of a diffusion model, 18 by default; 1 is one step.
        precision: what the network computes in; `auto` is the faster one here.

        Raises UserError for a class that the model does not have.
        """
        numbers = [int(seed) for seed in seeds]
        labels = self._labels(numbers, classes)
        tiles = [Tile("", s, s, label=n) for s, n in zip(numbers, labels, strict=True)]
        if not tiles:
            network = self.info.network
            return torch.empty(0, network.img_channels, *[network.img_resolution] * 2)
        compute_in(self.network, faster(precision, next(self.network.parameters()).device))
        with using(self.info.kernels):
            return torch.cat(list(draw(Sampler.of(self.info, steps), self.network, tiles, batch)))

    def grid(
        self,
        path: str | Path,
        seeds: Iterable[int] = range(64),
        *,
        classes: int | str | Iterable[int | str] | None = None,
        steps: int | None = None,
        columns: int | None = None,
    ) -> Path:
        """Write images as one PNG, nearly square or with this number of columns; returns its
        path."""
        save_grid(self.sample(seeds, classes=classes, steps=steps), Path(path), columns)
        return Path(path)

    def export(
        self, out: str | Path, *, to: Format = "safetensors", base_licence: str | None = None
    ) -> str:
        """Write it as `fasttrain export` does; returns what was written, in words."""
        source, quality = self.source, None
        if isinstance(source, SavedRun):
            quality = card_quality(source.path, source.images)
        return export_model(
            source,
            Path(out),
            to=to,
            base_licence=base_licence,
            vae=self.vae,
            quality=quality,
            picture=preview_png,
        )

    def playground(self, folder: str | Path) -> Path:
        """Write FOLDER/index.html, a page that runs a one-step generator in the browser, beside the
        diffusion model that it began with; returns its path.

        Raises UserError for a model that the page cannot run.
        """
        return export_page(build_page(self.path, which=self._checkpoint), Path(folder))

    @property
    def _checkpoint(self) -> str:
        """The one of a run that was loaded, not what is the latest by now."""
        return str(self.source.images) if isinstance(self.source, SavedRun) else "latest"

    def _labels(
        self, seeds: list[int], classes: int | str | Iterable[int | str] | None
    ) -> list[int]:
        count = self.info.network.label_dim
        if classes is None:
            return [seed % max(1, count) for seed in seeds]
        if not count:
            raise UserError(f"{self.path} has no classes: leave them out")
        each = [classes] * len(seeds) if isinstance(classes, int | str) else list(classes)
        if len(each) != len(seeds):
            raise UserError(f"{len(each)} classes for {len(seeds)} seeds: give one for each")
        for number in each:
            if isinstance(number, int) and not 0 <= number < count:
                raise UserError(f"class {number}: the network has classes 0 to {count - 1}")
        return [
            word if isinstance(word, int) else class_numbers(word, self.classes, count)[0]
            for word in each
        ]


def load(model: str | Path, checkpoint: str = "latest", vae: str | Path | None = None) -> Model:
    """A model by its name on the shelf, its run directory or its file.

    checkpoint: of a run: `latest`, `best` or a number of images.
    vae: the autoencoder of a model of latents; default: the run's.

    Raises UserError when there is none.
    """
    path = Path(model)
    return Model(open_model(path, checkpoint), path, None if vae is None else Path(vae))


def recipe(
    name: str | Path, *overrides: str, **settings: Any
) -> PretrainSettings | FinetuneSettings:
    """The settings of a recipe, by name or path.

    overrides: as on the command line, `"r1.gamma=0.1"`; settings: whole settings by name, such as
    `images=3000` or `ema={"half_life": 500}`.

    Raises UserError, with a line for each mistake.
    """
    words = [*overrides, *(f"{key}={_text(value)}" for key, value in settings.items())]
    task = written(str(name), words).values.get("task")
    if not isinstance(task, str) or task not in TRAININGS:
        raise UserError(f"{name}: task is {task!r}: choose one of {', '.join(TRAININGS)}")
    loaded: Any = load_settings(str(name), words, TRAININGS[task].schema)
    return loaded


def _text(value: Any) -> str:
    return json.dumps(value, default=str)


def pretrain(settings: PretrainSettings) -> Model:
    """Train a diffusion model, or resume its run; returns its average at the newest checkpoint."""
    return _trained(settings, run_pretrain)


def finetune(settings: FinetuneSettings) -> Model:
    """Turn a diffusion model into a one-step generator, or resume that run; returns its average at
    the newest checkpoint."""
    return _trained(settings, run_finetune)


def _trained(settings: RunSettings, train: Any) -> Model:
    train(settings, start())
    return load(settings.run)


def evaluate(
    model: Model | str | Path, data: str | Path | None = None, **request: Any
) -> Mapping[str, Any]:
    """Compare a model's images with real ones; returns the result, which is also written, in the
    format of `fasttrain.evaluation.result`.

    data: a shard set, a folder of images or a file of statistics. A run without it, and without
        other requests, has its table beside the diffusion model and real images.
    request: fields of `fasttrain.evaluation.request.Request`, such as `samples=5000`,
        `extractor="inception"`, `out=Path("result.json")`.

    Raises UserError and DataError for mistakes.
    """
    model = model if isinstance(model, Model) else load(model)
    if isinstance(model.source, SavedRun) and not (data or model.vae or request):
        return evaluate_run(model.source, world=start())
    request = {"checkpoint": model._checkpoint, "vae": model.vae, **request}
    wanted = Request(data=None if data is None else str(data), **request)
    return evaluate_model(model.path, wanted, start())
