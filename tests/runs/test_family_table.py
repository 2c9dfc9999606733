"""The table of families in docs/models.md says what the tests of whole runs do, cell by cell."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.model_goldens import cases, folder
from tests.models.test_adapters import ALL
from tests.runs.test_families import LATENTS, PIXELS
from tests.runs.test_zero_networks import NETWORKS

ROOT = Path(__file__).parents[2]


def rows() -> list[dict[str, str]]:
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    table = text.partition("<!-- begin families -->")[2].partition("<!-- end families -->")[0]
    cells = ([cell.strip() for cell in row.split("|")[1:-1]] for row in table.split("\n")[1:-1])
    head, _, *lines = cells
    return [dict(zip(head, line, strict=True)) for line in lines]


def test_each_cell_is_what_is_tested() -> None:
    if folder().parent.parent.name != "tests":
        pytest.skip("other golden models than ours")
    names = {case.name for case in cases()}
    whole = {case.name for case in PIXELS + LATENTS}
    networks = {ALL[name].get("model_type", "SongUNet") for name in NETWORKS if name in ALL}
    shipped = {"DiffusersUNet", "DiffusersTransformer"}
    seen: list[str] = []
    for row in rows():
        starts = tuple(start.strip() + "-" for start in row["small files"].split(","))
        found = {name for name in names if f"{name}-".startswith(starts)}
        seen += found
        assert found, row["family"]
        assert row["import"] == "yes"
        runs = "yes" if found & whole else "no"
        assert {row["sample"], row["fine-tune"], row["resume"]} == {runs}, row["family"]
        assert (row["export"] == "no") == (runs == "no")
        tried = networks | shipped | {"SongUNet"}
        assert (row["ZeRO 0-3"] == "yes") == (row["network"] in tried)
    assert sorted(seen) == sorted(names)
