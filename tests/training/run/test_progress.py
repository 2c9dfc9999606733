"""What a training prints where there is no terminal, and how much of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fasttrain.settings import PretrainSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.processes import ONE_PROCESS
from fasttrain.system.talk import NAME
from fasttrain.training.run import progress
from fasttrain.training.run.progress import Progress, say


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PretrainSettings:
    monkeypatch.delenv(NAME, raising=False)
    run = tmp_path / "photos-edm"
    run.mkdir()
    return load_settings("digits-edm", [f"run={run}", "images=64000"], PretrainSettings)


def test_a_line_now_and_then_between_reports(
    settings: PretrainSettings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    shown = Progress(settings, ONE_PROCESS, 0, 0.0)
    try:
        for step in range(1, 101):
            clock[0] += 1
            shown.advance(64 * step)
            if step == 40:
                shown.report(64 * step, {"loss/denoising": 0.25, "data/waiting": 0.5})
    finally:
        shown.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("/")[0].split()[-1] for line in lines] == [
        "1,920",
        "2,560",
        "4,480",
        "6,400",
    ]
    assert lines[0] == "photos-edm     1,920/64,000 images    30.0 s  64 images/s, 16 min left"
    assert "data/waiting 0.5" in lines[1]
    assert lines[2].endswith("left  loss/denoising 0.25")  # the last one that is known


def test_quiet_says_warnings_alone(
    settings: PretrainSettings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NAME, "less")
    shown = Progress(settings, ONE_PROCESS, 0, 0.0)
    shown.report(640, {"loss/denoising": 0.25})
    shown.close()
    say(settings, ONE_PROCESS, "resumed at 640 images")
    say(settings, ONE_PROCESS, "warning: a step was not finite")
    assert capsys.readouterr().err == f"{settings.run}: warning: a step was not finite\n"
    assert "0.25" in (settings.run / "stats.jsonl").read_text()
