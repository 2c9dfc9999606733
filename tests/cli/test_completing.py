"""What Tab proposes, through the shells' own protocol."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs.calling import call


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "photos").mkdir()
    (tmp_path / "photos.yaml").write_text("")
    (tmp_path / "notes.txt").write_text("")
    return tmp_path


def proposed(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    """Of the last word of a line, as bash asks for it."""
    words = line.split(" ")
    monkeypatch.setenv("_FASTTRAIN_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    return call(capsys)[1].splitlines()


@pytest.mark.parametrize(
    ("line", "has", "lacks"),
    [
        ("fasttrain fine", {"finetune"}, {"pretrain"}),
        ("fasttrain finetune digits-d", {"digits-d2o-f", "digits-d2o"}, {"digits-edm"}),
        ("fasttrain pretrain digits-", {"digits-edm"}, {"digits-d2o-f"}),
        ("fasttrain finetune p", {"photos.yaml"}, {"notes.txt"}),
        ("fasttrain finetune digits-d2o-f r1.g", {"r1.gamma="}, {"r1.kind="}),
        ("fasttrain pretrain digits-edm r", {"run=", "report_every="}, {"r1.gamma="}),
        ("fasttrain explain r1.ga", {"r1.gamma"}, {"r1.gamma="}),
        ("fasttrain sample f", {"fashion-mnist"}, {"notes.txt"}),
        ("fasttrain report runs/p", {"runs/photos/"}, set()),
        ("fasttrain export m --to d", {"diffusers"}, {"onnx"}),
        ("fasttrain evaluate m --extractor in", {"inception"}, {"lite2"}),
    ],
)
def test_proposals(
    line: str,
    has: set[str],
    lacks: set[str],
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = set(proposed(line, monkeypatch, capsys))
    assert has <= found
    assert not lacks & found


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_its_script(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_FASTTRAIN_COMPLETE", f"source_{shell}")
    status, script, _ = call(capsys)
    assert (status, "_FASTTRAIN_COMPLETE" in script) == (0, True)
