"""Batch norm groups over several processes: 8 and 4 of them compute what one does."""

from __future__ import annotations

from pathlib import Path

import pytest

from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.errors import UserError
from fasttrain.system.processes import start
from fasttrain.training.finetune import finetune
from tests.runs.processes import NUMBERS, lines, run_on
from tests.runs.test_deepspeed import SMOOTH

GROUP = [
    "discriminator.norm_group=16",
    "discriminator.class_embedding=random",
    "checkpoint.every=1000",
    "sample.count=2",
]
EXACT = ["images=96", "r1={gamma: 1e-3, interval: 1}"]
APPROXIMATED = ["images=96", "r1={kind: approximated}"]


def differences(run: Path, oracle: Path) -> dict[str, float]:
    """The largest of each number over the iterations, relative to its tolerance."""
    ours, expected = lines(run), lines(oracle)
    assert [line.keys() for line in ours] == [line.keys() for line in expected]
    found: dict[str, float] = {}
    for mine, theirs in zip(ours, expected, strict=True):
        for name, value in theirs.items():
            away = abs(mine[name] / value - 1) / NUMBERS[name]
            found[name] = max(found.get(name, 0), away)
    return found


@pytest.mark.slow
def test_groups_over_several_processes(quick: list[str], tmp_path: Path) -> None:
    """Batch 32 in groups of 16: two or four processes share one, with exact and approximated R1 at
    ZeRO 1 and 2. One run begins on eight processes and ends on four."""
    runs = {
        "exact": (1, EXACT),
        "approximated": (1, APPROXIMATED),
        "other": (1, [*APPROXIMATED, "discriminator.norm_group=8"]),
        "exact-8-4": (8, [*EXACT, "images=64", "engine.zero_stage=2"]),
        "approximated-4": (4, [*APPROXIMATED, "engine.zero_stage=2"]),
    }
    cells = [
        (world, [*quick, *SMOOTH, *GROUP, *changes, f"run={tmp_path / name}"])
        for name, (world, changes) in runs.items()
    ]
    again = [*quick, *SMOOTH, *GROUP, *EXACT, "engine.zero_stage=1"]
    run_on([*cells, (4, [*again, f"run={tmp_path / 'exact-8-4'}"])], tmp_path)

    assert [len(lines(tmp_path / name)) for name in ("exact", "approximated")] == [3, 3]
    assert sum("gradient/r1" in line for line in lines(tmp_path / "exact")) == 2
    # Groups of the images that a process has by itself would not pass.
    assert differences(tmp_path / "other", tmp_path / "approximated")["loss/discriminator"] > 10
    for name in ("exact-8-4", "approximated-4"):
        found = differences(tmp_path / name, tmp_path / name.partition("-")[0])
        assert max(found.values()) < 1, (name, found)

    changed = [*again, f"run={tmp_path / 'exact'}", "discriminator.norm_group=8"]
    with pytest.raises(UserError, match=r"norm_group was 16 and is 8; use those, or another"):
        finetune(load_settings("digits-d2o-f", changed, FinetuneSettings), start())
