"""Two processes give the numbers of one: of features, a model's file, the loop and a run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fasttrain.evaluation import precision_recall
from fasttrain.evaluation.collect import parts_of
from fasttrain.evaluation.evaluate import Evaluator
from fasttrain.evaluation.measure import evaluate_model
from fasttrain.evaluation.metrics.class_scores import ClassScores
from fasttrain.evaluation.metrics.resampling import frechet_estimate, kernel_estimate
from fasttrain.evaluation.metrics.statistics import Moments
from fasttrain.evaluation.request import Request
from fasttrain.evaluation.result import values_of
from fasttrain.evaluation.summary import evaluate_run
from fasttrain.models.build import assemble, new_network
from fasttrain.sampling.sampler import Sampler
from fasttrain.system import grouping
from fasttrain.system.errors import UserError
from fasttrain.system.processes import World
from fasttrain_data.errors import DataError
from tests.evaluation.results import ALONE, metrics_of
from tests.evaluation.test_evaluate import settings_of
from tests.ranks import on_ranks


def numbers_of(sets: dict[str, Tensor], world: World) -> dict[str, Any]:
    """Every number of given features, each process taking in its own rows."""
    real, fake = sets["real"], sets["fake"]
    known = []
    for x in (real, fake):
        moments = Moments(x.shape[1])
        for part in parts_of(len(x), 16, world):
            moments.update(x[part.start : part.stop])
        known.append(moments.statistics(world))
    scores = ClassScores(sets["logits"].shape[1], len(fake))
    for part in parts_of(len(fake), 16, world):
        index = torch.arange(part.start, part.stop)
        scores.update(sets["logits"][index], index)
    own = [fake[part.start : part.stop] for part in parts_of(len(fake), 16, world)]
    assert torch.equal(world.rows(torch.cat(own)), fake)
    return {
        "fd": known_of(asdict(frechet_estimate(known[0], known[1], fake, world))),
        "kd": known_of(asdict(kernel_estimate(real, fake, world))),
        "is": known_of(asdict(scores.estimate(world))),
        "balls": precision_recall(real, fake, world=world),
        "trace": float(known[1].sigma.trace()),
    }


def shared_alike(world: World) -> None:
    """Rank 0's tensors come in their dtypes and layouts, also those that lie within others."""

    def made(rank: int) -> dict[str, Tensor]:
        values = torch.arange(120.0).view(2, 3, 4, 5) + rank
        low = values.bfloat16()
        return {
            "channels last": low.to(memory_format=torch.channels_last),
            "within": values.flatten()[7:31].view(4, 6),
            "number": torch.tensor(5 + rank),
            "truth": torch.tensor([True, rank == 0]),
            "nothing": torch.zeros(0, 3),
        }

    found, expected = world.share(made(world.rank)), made(0)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
        assert (found[name].dtype, found[name].stride()) == (tensor.dtype, tensor.stride()), name


def added_up(world: World) -> None:
    """Values come from the ranks that have them, and are whole on rank 0 alone."""
    whole = [torch.arange(7.0), torch.tensor([0.5]), torch.arange(20.0), torch.zeros(0)]
    begin, end = [(0, 3), (3, 7)][world.rank]
    second = (0, whole[1] if world.rank else torch.zeros(0))
    halves = [(begin, whole[0][begin:end]), second, (10 * world.rank, whole[2][:10] + begin)]
    found = world.add_up([*halves, (0, whole[3])], [len(values) for values in whole])
    whole[2] = torch.cat([whole[2][:10], whole[2][:10] + 3])
    assert len(found) == (0 if world.rank else 4)
    assert all(torch.equal(a, b) for a, b in zip(found, whole, strict=world.is_main))


def looped(data: Path, world: World) -> dict[str, float]:
    """The numbers of the loop's evaluator, for the weights of rank 0."""
    settings = settings_of(data, "evaluate={samples: 70, batch: 16, components: 8}")
    torch.manual_seed(world.rank)
    network = new_network("edm", settings.network)
    with torch.no_grad():
        for parameter in network.parameters():  # the last layer starts at almost nothing
            parameter.add_(0.1 * torch.randn_like(parameter))
    shares: list[int] = []

    class Counted(Sampler):
        def __call__(self, network: Any, latents: Tensor, *rest: Any) -> Tensor:
            shares.append(len(latents))
            return super().__call__(network, latents, *rest)

    evaluator = Evaluator(settings, world)
    found = evaluator(Counted(), assemble(settings, network.state_dict(), world))
    assert shares == [[16, 16, 16, 16, 6], [16, 16], [16, 16, 6]][world.size - 1 + world.rank]
    assert ("real" in vars(evaluator)) == world.is_main
    return {name: estimate.value for name, estimate in found.items()}


def tabled(run: Path, world: World) -> dict[str, float]:
    """All numbers of a run's table."""
    result = evaluate_run(run, world=world)
    rows = {f"{m} {row}": x for m in ("fd", "kd") for row, x in values_of(result, m).items()}
    assert len(rows) == 6
    return rows


def measured(model: Path, data: Path, out: Path, world: World) -> dict[str, Any]:
    request = Request(data=str(data), samples=75, batch=16, out=out / "result.json")
    metrics = metrics_of(evaluate_model(model, request, world))
    return {name: known_of(estimate) for name, estimate in metrics.items()}


def known_of(estimate: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in estimate.items() if isinstance(value, float)}


def assert_no_thread_is_left() -> None:
    """One of gloo's can abort a process as it ends."""
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    assert "pt_gloo_runloop" not in threads


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(
    generator: Path, shards: Path, run: Path, tmp_path: Path
) -> None:
    draw = torch.Generator().manual_seed(0)
    sets = {
        "real": torch.randn(90, 40, generator=draw),
        "fake": torch.randn(75, 40, generator=draw) * 1.2 + 0.3,
        "logits": torch.randn(75, 12, generator=draw) * 2,
    }

    def all_of_them(world: World) -> list[dict[str, Any]]:
        return [
            numbers_of(sets, world),
            measured(generator, shards, tmp_path, world),
            looped(shards, world),
            tabled(run, world),
        ]

    def work(world: World) -> None:
        for limit in (1 << 24, 8):  # together, and in several groups
            grouping.AT_ONCE = limit
            shared_alike(world)
            added_up(world)
        found = all_of_them(world)
        with pytest.raises((UserError, DataError), match="nowhere"):  # of one host, by both
            measured(generator, tmp_path / "nowhere" if world.rank else shards, tmp_path, world)
        if world.is_main:
            (tmp_path / "two.json").write_text(json.dumps(found))

    on_ranks(2, work, tmp_path, after=assert_no_thread_is_left)
    two = json.loads((tmp_path / "two.json").read_text())
    for found, expected in zip(two, all_of_them(ALONE), strict=True):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-10), name
    assert set(two[1]) == {"fd", "fd_full", "kd", "precision", "recall"}
    assert set(two[1]["precision"]) == {"value", "low", "high"}
