"""`fasttrain evaluate RUN`: the run's metrics beside the baselines to compare with.

A fine-tuned generator is compared with its own start (one step before), its diffusion model (18
Heun steps, 35 evaluations) and the real floor; a diffusion run with the real floor. The result is
stored in `RUN/evaluation.json` together with the protocol, that of a checkpoint before the newest
beside it (`kept.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fasttrain.checkpoints.saved import SavedRun
from fasttrain.evaluation.evaluate import Evaluator
from fasttrain.evaluation.kept import table_of, write_table
from fasttrain.evaluation.notes import noted, selected, unequal_classes
from fasttrain.evaluation.result import result_of, row_of, write_result
from fasttrain.evaluation.shared import shared
from fasttrain.evaluation.watch import Watch
from fasttrain.models.files.model_file import ModelInfo
from fasttrain.models.load import load_base_model, load_model
from fasttrain.sampling.sampler import Sampler
from fasttrain.settings import RunSettings
from fasttrain.settings.trainings import training_of
from fasttrain.system.files import probe
from fasttrain.system.processes import ONE_PROCESS, World
from fasttrain_kernels import using

__all__ = ["Row", "evaluate_run", "rows_of"]


@dataclass(frozen=True)
class Row:
    """A baseline of a run's model, or the model itself.

    Attributes:
        name: key in files, and of the colour in the report.
        title, short: texts.
        sampler: None for real images.
        base: whether the network is the model that fine-tuning began with, or the average.
    """

    name: str
    title: str
    short: str
    sampler: Sampler | None = None
    base: bool = False

    def network(self, saved: SavedRun) -> Any:
        """The network that generates the images."""
        if not self.base:
            return load_model(saved)[0]
        heun = self.sampler is not None and self.sampler.kind == "heun"
        return load_base_model(saved, "edm" if heun else training_of(saved.settings).precond)


def rows_of(settings: RunSettings) -> list[Row]:
    """The rows of a run's table."""
    heun, own = Sampler("heun"), Sampler.of(settings)
    teacher = f"diffusion model, {heun.detail}", f"diffusion model, {heun.steps} steps"
    rows = [Row("real_floor", "real images against real images", "other real images")]
    if training_of(settings).generator:
        return [
            *rows,
            Row("teacher_18", *teacher, heun, base=True),
            Row(
                "one_step_before",
                f"{own.title}, before fine-tuning",
                f"{own.title}, before",
                own,
                base=True,
            ),
            Row("one_step_after", f"{own.title}, after fine-tuning", f"{own.title}, after", own),
        ]
    one = Sampler.of(settings, steps=1)
    return [
        *rows,
        Row("teacher_18", *teacher, heun),
        Row("one_step", f"{one.title} of the diffusion model", one.title, one),
    ]


def evaluate_run(
    run: Path | SavedRun,
    which: str = "latest",
    world: World = ONE_PROCESS,
    batch: int | None = None,
    *,
    trust_urls: bool = False,
    out: Path | None = None,
    show: Callable[[Mapping[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Evaluate the run's average at a checkpoint over all processes, write the table of this
    checkpoint, and return its content, in the format of `fasttrain.evaluation.result`.

    batch: images in a batch; default: `evaluate.batch`.
    out: another file than one in the run.
    show: is given the result, on rank 0, before it is written.
    trust_urls: open the URL of the data that the run names; refused otherwise.
    """
    began = time.monotonic()
    with world.agreed():
        saved = SavedRun.open(run, which) if isinstance(run, Path) else run
    settings = saved.settings
    world.on_main(lambda: probe(out or table_of(saved)))
    with using(settings.kernels), Watch(world) as watch:
        with world.agreed():
            evaluator = Evaluator(settings, world, batch, watch.phase, trust_urls=trust_urls)
            if any(row.base for row in rows_of(settings)):
                _ = saved.base_file  # report a missing base before anything is evaluated
        rows = {}
        for row in rows_of(settings):
            if row.sampler is None:
                rows[row.name] = row_of(evaluator.real_floor(), row.title)
                continue
            with world.agreed():
                network = row.network(saved).to(world.device)
            metrics = evaluator(row.sampler, network, title=row.short)
            rows[row.name] = row_of(metrics, row.title, row.sampler.detail, network)
    result = world.from_main(
        result_of(rows, evaluator, ModelInfo.of(saved), began=began, network=network)
    )
    note = noted(shared(settings), unequal_classes(evaluator), selected(settings, which))
    if note is not None:
        result["note"] = note
    world.on_main(lambda: show(result))
    world.on_main(lambda: write_result(out, result) if out else write_table(saved, result))
    return result
