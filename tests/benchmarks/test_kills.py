"""The result file of random kills: gone on with, and told as it is."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.kills_page import MOMENTS, begun, kills_part

RESULT = Path(__file__).parents[2] / "benchmarks" / "results" / "kills.json"


def row(ranks: int, stage: int | None, moment: str, **more: object) -> dict[str, object]:
    about = {"ranks": ranks, "stage": stage, "killed": [0], "moment": moment}
    return {**about, "others_ended": True, "problem": "", **more}


def test_what_is_done_is_kept_and_what_failed_is_done_again(tmp_path: Path) -> None:
    out = tmp_path / "kills.json"
    assert begun(out, 0)["kills"] == {}
    good, bad = row(1, None, MOMENTS[0]), {"ranks": 2, "stage": 1, "problem": "ema: a differs"}
    out.write_text(json.dumps({"machine": {"cpu": "x"}, "seed": 0, "kills": {"0": good, "1": bad}}))
    found = begun(out, 0)
    assert (found["kills"], found["machine"]) == ({"0": good}, {"cpu": "x"})
    assert begun(out, 1)["kills"] == {}


def test_the_table_counts_by_processes_stage_and_moment() -> None:
    rows = [row(1, None, MOMENTS[2]), row(2, 3, MOMENTS[3]), row(2, 3, MOMENTS[3], killed=[0, 1])]
    rows += [row(2, 3, MOMENTS[0], others_ended=False)]
    rows += [{"ranks": 2, "stage": 3, "problem": "ema: a differs"}]
    machine = {"cpu": "x", "cores": 2, "torch": "y"}
    kills = {str(number): each for number, each in enumerate(rows)}
    text = kills_part({"machine": machine, "seed": 7, "kills": kills})
    assert "**4 of 5** killed runs ended bit-identical to the unbroken one" in text
    assert "one was killed 2 times; the other ended by itself within a minute 1 times" in text
    assert "| 1 | plain PyTorch |  |  | 1 |  |  | 1 of 1 |" in text
    assert "| 2 | 3 | 1 |  |  | 2 |  | 3 of 4 |" in text


def test_every_published_kill_ended_bit_identical() -> None:
    kills = json.loads(RESULT.read_text())["kills"]
    assert kills
    assert not [each for each in kills.values() if each["problem"]]
