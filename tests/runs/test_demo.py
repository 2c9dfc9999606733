"""The main job, as `make demo` does it: the whole story meets the bar that the README states."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_demo_turns_a_diffusion_model_into_a_one_step_generator(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # other tests have the other core
    done = subprocess.run(
        [sys.executable, "-m", "fasttrain", "demo", "--out", str(out), "--seed", "0"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    summary = json.loads((out / "summary.json").read_text())
    fd = summary["fd"]
    assert set(fd) == {"real_floor", "teacher_18", "one_step_before", "one_step_after"}
    assert fd["one_step_after"] <= 1.3 * fd["teacher_18"]
    assert fd["one_step_after"] <= 0.2 * fd["one_step_before"]
    assert fd["real_floor"] < fd["one_step_after"]
    assert summary["trainable_fraction"] == pytest.approx(0.1972, abs=1e-4)
    assert summary["images_seen"] == 8000
    assert summary["seconds"] > 0
    report = out / "digits-d2o-f" / "report.html"
    assert str(report) in done.stdout
    assert f"{fd['one_step_after']:.3f}" in done.stdout
    assert report.read_text().count("data:image/png;base64,") >= 4
