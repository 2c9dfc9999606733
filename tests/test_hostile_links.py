"""Links inside a run directory that came from anyone: nothing is written outside of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.directory import OURS, keep_earlier, open_directory
from fasttrain.checkpoints.lock import ask_to_stop
from fasttrain.checkpoints.saved import keep_base
from fasttrain.checkpoints.stats import Stats
from fasttrain.evaluation.result import write_result
from fasttrain.sampling.pictures import save_grid
from fasttrain.settings import PretrainSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.errors import UserError
from fasttrain.system.files import own_folder, write_atomic
from tests.hostile.runs import alarm, void


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    with alarm(120):
        yield


def plainly(name: str) -> Callable[[Path], None]:
    return lambda run: write_atomic(run / name, "{}")


TENSORS = {"a": torch.zeros(2)}


def write_config(run: Path) -> None:
    settings = load_settings("digits-edm", [f"run={run}", f"data.path={run}"], PretrainSettings)
    open_directory(settings).release()


def write_stats(run: Path) -> None:
    stats = Stats(run, 64)
    stats.write(96, {"x": 1.0})
    stats.close()


def write_earlier(run: Path) -> None:
    checkpoint.save(run / "checkpoints", 64, {"ema": TENSORS}, {})
    write_atomic(run / "config.yaml", "generator: {clip: null}\n")
    with pytest.warns(UserWarning, match=r"gone since are generator\.clip"):
        keep_earlier(run)


WRITERS: dict[str, Callable[[Path], None]] = {
    "audit.json": plainly("audit.json"),
    "base.safetensors": lambda run: void(keep_base(run, TENSORS)),
    "checkpoints": write_config,
    "config.earlier.yaml": write_earlier,
    "config.yaml": write_config,
    "discriminator.json": plainly("discriminator.json"),
    "evaluation.json": lambda run: write_result(run / "evaluation.json", {"rows": {}}),
    "lock": write_config,
    "memory.json": plainly("memory.json"),
    "report.html": plainly("report.html"),
    "samples": write_config,
    "stats.jsonl": write_stats,
    "stop": ask_to_stop,
    "tensorboard": write_config,
    "wandb": lambda run: own_folder(run / "wandb"),
}
"""What writes each thing of a run directory; `report.html` by `write_report` itself is below."""
INNER: dict[str, Callable[[Path], None]] = {
    "samples/0000000064.png": lambda run: save_grid(
        torch.zeros(1, 1, 8, 8), run / "samples" / "0000000064.png"
    ),
    "checkpoints/step-0000000064": lambda run: void(
        checkpoint.save(run / "checkpoints", 64, {"ema": TENSORS}, {})
    ),
    "checkpoints/step-0000000032": lambda run: checkpoint.prune(run / "checkpoints", 1, 16),
    "checkpoints/step-0000000016.old": lambda run: checkpoint.tidy(run / "checkpoints"),
}


def test_every_name_in_a_run_directory_has_its_writer() -> None:
    assert {name for name in OURS if not name.endswith(".tmp")} == set(WRITERS)


@pytest.mark.parametrize("name", [*WRITERS, *INNER])
def test_a_link_inside_a_run_directory_leads_nothing_astray(name: str, tmp_path: Path) -> None:
    """Planted at the name and at that of its unfinished file, to a file, a folder, and nothing."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("precious")
    os.utime(outside / "file", (1, 1))
    for planted in (name, f"{name}.tmp"):
        for target in ("file", ".", "new"):
            run = tmp_path / "run"
            (run / planted).parent.mkdir(parents=True)
            (run / planted).symlink_to(outside / target)
            with suppress(UserError):  # refused, by name
                {**WRITERS, **INNER}[name](run)
                replaced = planted == name and name in WRITERS
                assert not (replaced and (run / name).is_symlink())
            assert [path.name for path in outside.iterdir()] == ["file"]
            assert (outside / "file").read_text() == "precious"
            assert (outside / "file").stat().st_mtime == 1
            shutil.rmtree(run)


def test_a_run_directory_may_be_a_link_itself(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "scratch")
    write_config(tmp_path / "run")
    assert (tmp_path / "scratch" / "config.yaml").is_file()
