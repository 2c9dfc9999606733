"""A run that is opened once: nothing of it is hashed twice, and its base is its own."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fasttrain.analysis.report import grids
from fasttrain.analysis.report.page import write_report
from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.saved import SavedRun
from fasttrain.evaluation.measure import evaluate_model
from fasttrain.evaluation.request import Request
from fasttrain.evaluation.summary import evaluate_run
from fasttrain.models.export import export_model
from fasttrain.models.load import load_model
from fasttrain.sampling.sample import Wanted, sample_model
from fasttrain.settings import FinetuneSettings, PretrainSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.errors import UserError
from fasttrain.system.processes import ONE_PROCESS
from fasttrain_data import convert
from tests.analysis.report.support import SMALL, fabricate


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A diffusion run, and a fine-tuning run that began with it."""
    root = tmp_path_factory.mktemp("saved")
    diffusion, tuned = root / "edm", root / "one"
    convert("digits", root / "data")
    evaluate = "evaluate={samples: 4, components: 2, batch: 4}"
    common = [f"data.path={root / 'data'}", *SMALL, evaluate]
    base = fabricate(
        load_settings("digits-edm", [*common, f"run={diffusion}"], PretrainSettings), 1
    )
    changes = [*common, f"run={tuned}", f"init={diffusion}"]
    fabricate(load_settings("digits-d2o-f", changes, FinetuneSettings), 2, base=base)
    return diffusion, tuned


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Counter[Path]:
    """How often each file was hashed."""
    counts: Counter[Path] = Counter()
    digest = hashlib.file_digest

    def counted(file: Any, kind: str) -> Any:
        counts[Path(file.name)] += 1
        return digest(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return counts


def photos(out: Path) -> Path:
    """A folder of two images."""
    for level in (0, 200):
        (out / "photos").mkdir(exist_ok=True)
        Image.new("L", (8, 8), level).save(out / "photos" / f"{level}.png")
    return out / "photos"


COMMANDS: dict[str, Callable[[Path, Path], Any]] = {
    "load": lambda run, out: load_model(run),
    "sample": lambda run, out: sample_model(run, f"{out}/x.png", Wanted(seeds="0")),
    "export": lambda run, out: export_model(run, out / "x.safetensors"),
    "evaluate": lambda run, out: evaluate_run(run),
    "evaluate MODEL": lambda run, out: evaluate_model(
        run,
        Request(data=str(photos(out)), samples=2, metrics=("kd",), out=out / "x.json"),
        ONE_PROCESS,
    ),
    "report": lambda run, out: write_report(run),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_file_is_hashed_once(
    command: str,
    runs: tuple[Path, Path],
    tmp_path: Path,
    hashed: Counter[Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = runs[1]
    if command == "report":  # what is drawn does not matter here
        monkeypatch.setattr(grids, "generate", lambda *_: torch.zeros(50, 1, 8, 8))
    COMMANDS[command](run, tmp_path)
    step = next((run / "checkpoints").iterdir())
    names = ("generator.safetensors", "ema.safetensors", "state.json")
    files = [run / "base.safetensors", *(step / name for name in names)]
    assert hashed == dict.fromkeys(files, 1)


def test_the_best_checkpoint_is_hashed_once(tmp_path: Path, hashed: Counter[Path]) -> None:
    for images in (1, 2, 3):
        checkpoint.save(tmp_path, images, {}, {"images": images, "fd": float(images)})
    hashed.clear()
    assert checkpoint.find(tmp_path, "best").images == 1
    assert set(hashed.values()) == {1}


def test_the_base_is_the_runs_own(runs: tuple[Path, Path]) -> None:
    diffusion, run = runs
    saved = SavedRun.open(run)
    other = SavedRun.open(diffusion)
    assert saved.base.keys() == other.weights.keys()
    assert all(torch.equal(saved.base[name], value) for name, value in other.weights.items())
    with pytest.raises(UserError, match="does not hold the model that it began with"):
        _ = other.base
    kept = (run / "base.safetensors").read_bytes()
    try:
        (run / "base.safetensors").write_bytes(kept[:-1] + b"\x55")
        assert saved.base.keys() == other.weights.keys()  # verified when it was opened first
        with pytest.raises(UserError, match="is missing or damaged: continue the run"):
            _ = SavedRun.open(run).base
    finally:
        (run / "base.safetensors").write_bytes(kept)
