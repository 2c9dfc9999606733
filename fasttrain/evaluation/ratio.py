"""FDr: how many times farther a run's images are from real ones than other real images are, the
mean over several extractors. 1 is as good as real images; one extractor that the training has
deceived does not decide.

    FDr = 1 / K sum_k FD_k(generated, real) / FD_k(other real, real)

at equal numbers of images, with the metric and the principal components of `evaluate`. (The ratio
is that of FD-loss's evaluation, arXiv 2604.28190, in whose published numbers the other real images
are the validation set; here they are the next ones of the run's own data.)

    evaluate_ratio(Path("runs/digits-d2o-f"), ["lite2", "dino_vits16"])["fdr"]
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fasttrain.checkpoints.saved import SavedRun
from fasttrain.evaluation.evaluate import Evaluator
from fasttrain.evaluation.extractors import check_extractor
from fasttrain.evaluation.watch import Watch
from fasttrain.models.load import load_model
from fasttrain.sampling.sampler import Sampler
from fasttrain.settings.trainings import training_of
from fasttrain.system.errors import UserError
from fasttrain.system.files import probe, write_atomic
from fasttrain.system.processes import ONE_PROCESS, World
from fasttrain_kernels import using

__all__ = ["evaluate_ratio", "mean_ratio", "ratio_text"]


def mean_ratio(distances: Mapping[str, tuple[float, float]]) -> float:
    """The mean over extractors of the distance of generated images over that of other real ones.

    Raises UserError where real images have none.
    """
    for name, (_, floor) in distances.items():
        if not floor > 0:
            raise UserError(f"{name}: other real images have the distance {floor:g}: evaluate more")
    return sum(value / floor for value, floor in distances.values()) / len(distances)


def evaluate_ratio(
    run: Path,
    extractors: Sequence[str],
    which: str = "latest",
    world: World = ONE_PROCESS,
    batch: int | None = None,
    *,
    trust_urls: bool = False,
    out: Path | None = None,
) -> dict[str, Any]:
    """Evaluate the run's average with each extractor, write `RUN/fdr.json`, and return its content.
    The run's own extractor has the weights of its settings.

    Raises UserError for an unknown extractor or one without its weights, before any evaluation.
    """
    if not extractors:
        raise UserError("--fdr needs extractors, such as lite2,dino_vits16")
    with world.agreed():
        saved = SavedRun.open(run, which)
        own = saved.settings.evaluate
        weights = {name: own.weights if name == own.extractor else None for name in extractors}
        for name, file in weights.items():
            check_extractor(name, file)
    settings, path = saved.settings, out or saved.path / "fdr.json"
    world.on_main(lambda: probe(path))
    generator = training_of(settings).generator
    sampler = Sampler.of(settings) if generator else Sampler("heun")
    distances, protocols = {}, {}
    with using(settings.kernels), Watch(world) as watch:
        with world.agreed():
            network = load_model(saved)[0].to(world.device)
        for name, file in weights.items():
            wanted = own.model_copy(update={"extractor": name, "weights": file})
            with_it = settings.model_copy(update={"evaluate": wanted})
            with world.agreed():
                evaluator = Evaluator(with_it, world, batch, watch.phase, trust_urls=trust_urls)
            floor = evaluator.real_floor()["fd"].value
            distances[name] = evaluator(sampler, network, title=name)["fd"].value, floor
            protocols[name] = world.from_main(evaluator.protocol())
    result = {
        "fdr": mean_ratio(distances),
        "extractors": {
            name: {"fd": value, "floor": floor, "protocol": protocols[name]}
            for name, (value, floor) in distances.items()
        },
        "sampler": sampler.detail,
        "images_seen": saved.images,
    }
    text = json.dumps(result, indent=1) + "\n"
    world.on_main(lambda: write_atomic(path, text))
    return result


def ratio_text(result: Mapping[str, Any]) -> str:
    """Text for people: a line for each extractor, and the mean of the ratios."""
    lines = [f"{'extractor':14}{'fd':>10}{'other real':>12}{'ratio':>8}"]
    for name, row in result["extractors"].items():
        ratio = row["fd"] / row["floor"]
        lines.append(f"{name:14}{row['fd']:>10.3f}{row['floor']:>12.3f}{ratio:>8.2f}")
    return "\n".join([*lines, f"{'FDr':36}{result['fdr']:>8.2f}"])
