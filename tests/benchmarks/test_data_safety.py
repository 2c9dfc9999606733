"""Every hostile file of docs/data-safety.md again, by one process of its own that forks
(`python -m benchmarks.data_safety`)."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.data_safety import hostile_part, limits, limits_part, others_part
from benchmarks.page import DOCS, rewritten
from tests.hostile.cases import CONVERT, Case
from tests.hostile.judge import Judge, _sound_images

ROOT = Path(__file__).parents[2]
PUBLISHED = json.loads((ROOT / "benchmarks/results/data-safety.json").read_text())
NAMES = [f"{row['group']}: {row['what']}" for row in PUBLISHED["rows"]]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("hostile") / "found.json"
    paths = os.pathsep.join([str(ROOT), str(ROOT / "data_tools")])
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.data_safety", "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert out.exists(), done.stdout[-2000:] + done.stderr[-4000:]
    result: dict[str, Any] = json.loads(out.read_text())
    return result


@pytest.mark.parametrize("name", NAMES)
def test_nothing_runs_and_memory_stays_within_bounds(found: dict[str, Any], name: str) -> None:
    assert name in found["measured"]
    assert name not in found["problems"], found["problems"][name]


def test_every_row_is_published_as_it_is(found: dict[str, Any]) -> None:
    assert found["rows"] == PUBLISHED["rows"]
    assert found["others"] == PUBLISHED["others"]
    assert len(found["rows"]) > 150
    assert not PUBLISHED["problems"]


def test_the_limits_are_those_of_the_code() -> None:
    assert PUBLISHED["limits"] == limits()


def test_the_page_follows_from_the_result() -> None:
    text = (DOCS / "data-safety.md").read_text()
    parts = {"limits": limits_part, "hostile": hostile_part, "others": others_part}
    made = {name: lambda part=part: part(PUBLISHED) for name, part in parts.items()}
    assert rewritten(text, made) == text, "run python -m benchmarks.page"


def test_the_judge_sees_what_no_reader_may_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def harm() -> None:
        os.system("true")
        pickle.loads(pickle.dumps(os.path.join))
        Path("../elsewhere").write_text("x")
        held = os.urandom(1 << 20) * 180
        print("\x1b[2J", len(held))

    case = Case(
        group="", what="", make=_sound_images, command=CONVERT, expect="?", status=2, megabytes=150
    )
    judge = Judge(tmp_path)
    monkeypatch.setattr("tests.hostile.judge.main", harm)
    problems = "\n".join(judge(case).problems)
    for text in (
        "os.system (b'true',)",
        "pickle.find_class",
        "elsewhere to write",
        "status 0, expected 2",
        "expected '?'",
        "MB, allowed are 150",
        r"printed '\x1b[2J",
        f"made {tmp_path}/elsewhere",
    ):
        assert text in problems


def test_other_readers_run_what_a_set_brings(found: dict[str, Any]) -> None:
    """Why there is a reader of our own: if this fails, webdataset has become safer."""
    outcomes = {(row["what"], row["reader"]): row["outcome"] for row in found["others"]}
    assert outcomes["a shard named `pipe:touch pwned`", "`webdataset`"] == "the command ran"
