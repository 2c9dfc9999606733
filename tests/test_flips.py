"""Every single bit of a manifest, a state and statistics flipped: passed over by name, and nothing
taken that is not as it was written."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fasttrain.checkpoints import checkpoint, stats
from fasttrain.checkpoints.stats import is_number, read_stats, sealed
from fasttrain.system import files as files_module
from fasttrain.system.errors import UserError


def flipped(content: bytes) -> Iterator[bytes]:
    for place in range(8 * len(content)):
        other = bytearray(content)
        other[place // 8] ^= 1 << place % 8
        yield bytes(other)


@pytest.mark.parametrize("name", ["manifest.json", "state.json"])
def test_a_flipped_bit_in_a_checkpoint(name: str, tmp_path: Path, monkeypatch) -> None:
    tensors = {"ema": {"a": torch.arange(3.0)}}
    state = {"images": 64, "seconds": 1.5, "data": {"streams": {"0": {"epoch": 0}}}}
    step = checkpoint.save(tmp_path, 64, tensors, state)
    path, files = step.path / name, [file.name for file in step.path.iterdir()]
    content = path.read_bytes()
    reads = files_module.read_bytes
    for other in flipped(content):
        if name == "state.json":  # its SHA-256 is taken of the file
            path.write_bytes(other)
        else:
            monkeypatch.setattr(files_module, "read_bytes", lambda *_, other=other: other)
        damage = step.damage()
        assert damage is not None, other
        assert any(part in damage for part in (*files, "is missing"))
        assert damage.isprintable()
    monkeypatch.setattr(files_module, "read_bytes", reads)
    path.write_bytes(other)
    with pytest.warns(UserWarning, match=f"{step.path} is skipped: "):
        assert checkpoint.newest(tmp_path) is None
    path.write_bytes(content)
    assert step.damage() is None


def test_a_manifest_that_does_not_list_all_or_lists_more_is_damaged(tmp_path: Path) -> None:
    step = checkpoint.save(tmp_path, 64, {"ema": {}, "generator": {}}, {})
    path = step.path / "manifest.json"
    whole = json.loads(path.read_text())

    def damage(**changes: object) -> str | None:
        path.write_text(json.dumps({k: v for k, v in {**whole, **changes}.items() if v != 0}))
        return step.damage()

    assert damage() is None
    assert damage(**{"ema.safetensors": 0}) == "ema.safetensors is missing in manifest.json"
    assert damage(**{"state.json": 0}) == "state.json is missing in manifest.json"
    assert damage(**{"../../x": whole["state.json"]}) == "../../x is missing"
    assert damage(**{"\x1b[2J": whole["state.json"]}) == r"'\x1b[2J' is missing"
    for entry in ([], {"bytes": 3}, {"bytes": [], "sha256": 3}, None):
        assert "ema.safetensors" in str(damage(**{"ema.safetensors": entry}))
    (step.path / "state.json").unlink()
    assert damage(**{"state.json": 0}) == "state.json is missing"


LINES = [{"images": 32, "loss/r1": 0.5}, {"images": 64, "fd": 2e-5}, {"images": 96, "kd": -1}]


def test_a_flipped_bit_in_the_statistics(tmp_path: Path, monkeypatch) -> None:
    content = "".join(map(sealed, LINES)).encode()
    path = tmp_path / "stats.jsonl"
    for number, other in enumerate(flipped(content)):
        monkeypatch.setattr(stats, "read_bytes", lambda *_, other=other: other)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = read_stats(tmp_path)
        line = content[: number // 8].count(b"\n")
        left = [kept for k, kept in enumerate(LINES) if k != line]
        if chr(content[number // 8]) == "\n":  # two lines are one then
            left = [kept for k, kept in enumerate(LINES) if k not in (line, line + 1)]
        assert found == left, other
        assert f"{path}: damaged lines are skipped: {line + 1}" in str(said[0].message)
        assert len(said) == 1


def test_lines_of_other_content_are_damaged_and_a_cut_one_is_silent(tmp_path: Path) -> None:
    path = tmp_path / "stats.jsonl"
    bad = ["[]", "3", '{"images": -1}', '{"images": 1.0}', '{"images": 1, "x": "y"}', '{"x": 1}']
    bad += ['{"images": 1, "x": [2]}', "[" * 5000, '{"images": 1, "x": 1' + "0" * 5000 + "}", "\0"]
    old = '{"images": 7, "fd": NaN}\n'  # without a seal, of an earlier version
    path.write_text("\n".join(bad) + "\n" + old + sealed({"images": 9}) + '{"images": 160, "los')
    with pytest.warns(UserWarning, match=r"damaged lines are skipped: 1, 2, 3, 4, 5, \.\.\.$"):
        assert [line["images"] for line in read_stats(tmp_path)] == [7, 9]
    path.write_text(old + '{"images": 160, "los')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [line["images"] for line in read_stats(tmp_path)] == [7]
    assert not any(map(is_number, (True, None, "1", 10**400, 1e-200, -1e200)))
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=r"stats\.jsonl is not a regular file"):
        read_stats(tmp_path)
