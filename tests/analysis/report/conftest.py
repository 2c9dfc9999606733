"""A fabricated pre-training run and a fine-tuning run of it, with their report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fasttrain.analysis.report import page as report
from fasttrain.analysis.report.page import write_report
from fasttrain.models.audit import audit
from fasttrain.sampling.pictures import save_grid
from fasttrain.settings import FinetuneSettings, PretrainSettings
from fasttrain.settings.recipes import load_settings
from fasttrain_data import convert
from tests.analysis.report.support import FD, SMALL, Page, fabricate, new_audited


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A pre-training run and a fine-tuning run of it, with all that such runs leave."""
    root = tmp_path_factory.mktemp("report")
    data, diffusion, tuned = root / "data", root / "digits-edm", root / "digits-d2o-f"
    convert("digits", data)
    common = [f"data.path={data}", *SMALL]
    pretrained = load_settings("digits-edm", [*common, f"run={diffusion}"], PretrainSettings)
    settings = load_settings(
        "digits-d2o-f",
        [*common, f"run={tuned}", f"init={diffusion}", "images=6016"],
        FinetuneSettings,
    )
    teacher = fabricate(pretrained, 1)
    generator = fabricate(settings, 2, base=teacher)
    shutil.rmtree(diffusion)
    fabricate(pretrained, 3)  # `init` has trained on since
    with (tuned / "stats.jsonl").open("w") as file:
        for images in range(320, 6017, 320):
            line = {"images": images, "seconds": images / 64, "logits/real": 0.5}
            line |= {"loss/generator": 2.0, "loss/discriminator": 1.0, "logits/fake": -images / 1e4}
            line |= {"loss/r1": 3.0, "fd": 100.0, "fd_full": 1.0} if images % 1600 == 0 else {}
            file.write(json.dumps(line) + "\n")
        file.write(json.dumps({"images": 99999, "loss/generator": 5e7}) + "\n")  # no checkpoint yet
    (tuned / "audit.json").write_text(json.dumps(audit(new_audited(settings)).to_dict()))
    evaluation = {
        "fd": FD,
        "fd_full": {row: 2 * value for row, value in FD.items()},
        "kd": {row: value / 1000 for row, value in FD.items()},
        "protocol": {"extractor": "lite2", "images": 898, "checkpoint": "latest"},
        "seconds": 41.2,
    }
    (tuned / "evaluation.json").write_text(json.dumps(evaluation))
    for images in range(0, 6017, 752):
        save_grid(torch.rand(4, 1, 8, 8) * 2 - 1, tuned / "samples" / f"{images:010d}.png")
    (tuned / "samples" / "0000000752.png").write_bytes(b"damaged")
    page = Page(write_report(tuned).read_text(encoding="utf-8"))
    return {
        "tuned": tuned,
        "diffusion": diffusion,
        "settings": settings,
        "generator": generator,
        "teacher": teacher,
        "page": page,
    }


@pytest.fixture
def tuned(made: dict[str, Any], tmp_path: Path) -> Path:
    """A copy of the fine-tuning run, to be spoilt."""
    return Path(shutil.copytree(made["tuned"], tmp_path / "run"))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what has nothing to do with the pictures."""
    monkeypatch.setattr(report, "compare", lambda saved, trust_urls: [])
