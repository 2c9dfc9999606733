"""The first run on a GPU, rehearsed: what it does when all is well, and what it says when not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_smoke
from fasttrain.checkpoints import checkpoint

SCRIPT = Path(gpu_smoke.__file__).with_suffix(".sh")


@pytest.mark.slow
def test_a_training_is_killed_and_resumed(tmp_path: Path) -> None:
    """By the script, on the CPU, without the looking (tests/runs does that) and two processes
    (tests/cluster)."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "BUDGET")}
    done = subprocess.run(
        [
            *("bash", str(SCRIPT), "--device", "cpu", "--folder", str(tmp_path / "kept")),
            *("--steps", "pretrain,one", "--budget", "400", "--", "seed=3"),
            *("network.channel_mult=[1]", "network.attn_resolutions=[8]"),
        ],
        env=kept | {"PYTHON": sys.executable},
        cwd=tmp_path,  # from anywhere
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first, pretrained, tuned, last = done.stdout.splitlines()
    assert first == "gpu_smoke: CPU, a rehearsal"
    assert pretrained.startswith("ok ")
    assert "killed after 480 of 960 images, resumed; loss/generator" in tuned
    assert "all is well" in last
    steps = checkpoint.steps(tmp_path / "kept" / "one" / "checkpoints")
    assert steps[-1].images == gpu_smoke.IMAGES
    assert "seed: 3" in (tmp_path / "kept" / "one" / "config.yaml").read_text()


def smoke(folder: Path, seconds: float = 60) -> gpu_smoke.Smoke:
    return gpu_smoke.Smoke(folder, seconds, "cpu", [])


def test_a_failure_is_said_with_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def broken(self: gpu_smoke.Smoke) -> str:
        (self.folder / "one.log").write_text("a line before\n")
        self.run("one", "no_such_module")
        return "never"

    monkeypatch.setitem(gpu_smoke.STEPS, "one", ("fine-tuning", broken))
    monkeypatch.setitem(gpu_smoke.STEPS, "two", ("two", lambda _: ran.append("two") or ""))
    assert gpu_smoke.run_steps(smoke(tmp_path), ["one", "two"]) == 1
    said = capsys.readouterr().out
    assert "FAIL" in said
    assert "fine-tuning: ended with status 1" in said
    assert "    a line before\n" in said
    assert "No module named no_such_module" in said
    assert not ran


def test_what_does_not_end_is_killed(tmp_path: Path) -> None:
    process = smoke(tmp_path).start("one", "http.server", "0", "--bind", "127.0.0.1")
    with pytest.raises(gpu_smoke.Failed, match="out of time"):
        smoke(tmp_path, -1).wait(process)
    assert process.returncode == -9


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ([{"images": 160, "a": 1.0}], "ended at 160 images instead of 320"),
        ([{"images": 160}, {"images": 160}, {"images": 320}], "missing or doubled"),
        ([{"images": 160, "a": float("nan")}, {"images": 320}], "not finite.*'a'"),
        ([{"images": 160, "skipped/r1": 1.0}, {"images": 320}], "skipped"),
    ],
)
def test_what_a_good_run_has_not(tmp_path: Path, lines: list[Any], problem: str) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "stats.jsonl").write_text(text + '{"images": 32')  # being written
    with pytest.raises(gpu_smoke.Failed, match=problem):
        gpu_smoke.ended_well(tmp_path, 320)


def test_without_a_gpu_nothing_is_tried(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_smoke.torch.cuda, "device_count", lambda: 0)
    assert gpu_smoke.main([]) == 2
    assert "sees no GPU" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu_smoke.main(["--steps", "one,tow"])
    assert "not tow" in capsys.readouterr().err
