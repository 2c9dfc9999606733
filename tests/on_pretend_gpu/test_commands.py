"""The commands on a GPU, each as a user types it, on the device that they are given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file

from tests.on_pretend_gpu.machine import ROOT, Machine
from tests.on_pretend_gpu.trainings import FINETUNE


def command(machine: Machine, *words: str | Path, **variables: str) -> dict[str, Any]:
    """What the GPUs were used for by a `fasttrain` command that has to succeed."""
    return machine.run("trainings:command", *words, **variables)[0]


def test_class_features(folder: Path) -> None:
    """Made by the fixture on the GPU; every fine-tuning here begins with them."""
    found = load_file(folder / "digits" / "class_features-32.safetensors")["means"]
    assert found.shape == (10, 320)
    assert (found != found[0]).any()


@pytest.mark.parametrize(("visible", "used"), [("0,1", [True, False]), ("1", [True]), ("", [])])
def test_sample(
    machine: Machine, folder: Path, tuned: Path, visible: str, used: list[bool]
) -> None:
    """On the first visible GPU, or on the CPU where none is: the same images but for rounding."""
    place = folder / f"seeds-{len(used)}.png"
    words = ["sample", tuned, "--seeds", "0-3", "--out", place]
    found = command(machine, *words, CUDA_VISIBLE_DEVICES=visible)
    assert [peak > 0 for peak in found["peak"]] == used
    first = folder / "seeds-2.png"
    if place != first:
        pairs = zip(*(Image.open(p).convert("L").tobytes() for p in (place, first)), strict=True)
        assert max(abs(a - b) for a, b in pairs) <= 3


def test_evaluate(machine: Machine, folder: Path, tuned: Path) -> None:
    out = folder / "numbers.json"
    words = ["evaluate", tuned, "--data", folder / "digits", "--samples", "12", "--out", out]
    found = command(machine, *words, "--metrics", "kd,precision,recall")
    assert found["peak"][0] > 1 << 20
    result = json.loads(out.read_text())
    assert result["made"]["device"] == "NVIDIA H100 80GB HBM3"
    assert set(result["rows"]["model"]["metrics"]) == {"kd", "precision", "recall"}


def test_export(machine: Machine, folder: Path, tuned: Path) -> None:
    """The same file as without a GPU, byte for byte."""
    files = [folder / "exported" / f"{name}.safetensors" for name in ("gpu", "cpu")]
    files[0].parent.mkdir()
    for out, visible in zip(files, ("0,1", ""), strict=True):
        command(machine, "export", tuned, "--out", out, CUDA_VISIBLE_DEVICES=visible)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_report(machine: Machine, tuned: Path) -> None:
    command(machine, "report", tuned)
    page = (tuned / "report.html").read_text()
    assert "NVIDIA H100 80GB HBM3" in page


def test_doctor() -> None:
    """As a user types it: `python -m pretend_gpu -m fasttrain doctor`."""
    command = [sys.executable, "-m", "pretend_gpu", "-m", "fasttrain", "doctor"]
    paths = [ROOT, ROOT / "tests", ROOT / "kernels", ROOT / "data_tools"]
    chosen = {"PRETEND_GPUS": "2", "PYTHONPATH": os.pathsep.join(map(str, paths))}
    ended = subprocess.run(command, env=os.environ | chosen, capture_output=True, text=True)
    assert ended.returncode in (0, 1), ended.stderr  # 1: the machine lacks what GPUs need
    assert ended.stdout.count("capability 9.0, 80 GiB, computes") == 2, ended.stdout


def test_profile_on_the_second_gpu(machine: Machine, folder: Path) -> None:
    out = folder / "profile"
    words = [*FINETUNE, f"data.path={folder / 'digits'}", f"init={folder / 'base'}"]
    words += ["r1.gamma=0", "network.channel_mult=[1]", "discriminator.resolutions=[16]"]
    words += ["--device", "cuda:1", "--batch", "4", "--iterations", "1", "--no-compile"]
    found = machine.run("trainings:profile", *words, "--out", out)[0]
    assert found["peak"][1] > found["peak"][0] == 0
    result = json.loads((out / "profile.json").read_text())
    assert result["machine"]["device"] == "NVIDIA H100 80GB HBM3"
    assert result["configuration"]["dtype"] == "bfloat16"
    assert result["wrong"] == []
