"""A DeepSpeed that would compute something else, or lacks what is used, is refused by name."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from fasttrain.cli.doctor import machine
from fasttrain.cli.doctor.machine import check_deepspeed
from fasttrain.system.errors import UserError
from fasttrain.training.engines.deepspeed_version import (
    ENGINE,
    NEEDED,
    OPTIMIZER,
    PARAMETER,
    UTILS,
    check_names,
    check_version,
    too_new,
    too_old,
)


def test_the_versions_are_those_that_are_installed() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert NEEDED in project["dependencies"]
    assert not too_old(metadata.version("deepspeed"))
    assert not too_new(metadata.version("deepspeed"))


@pytest.mark.parametrize("version", ["0.9.5", "0.18.9", "0.19.0", "0.19.3+cpu"])
def test_older_ones_are_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"all micro-batches but the last: pip install 'deepspeed>"):
        check_version(version)
    monkeypatch.setattr(machine, "version_of", lambda _: version)
    (line,) = check_deepspeed()
    assert line.status == "warn"
    assert f"{version}: refused: it drops micro-batches" in line.found
    assert NEEDED in line.remedy


def test_newer_ones_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("0.19.4", "0.19.8", "0.19.12+abc", "0.19.4rc1"):
        check_version(version)
    with pytest.warns(UserWarning, match=r"0\.20\.0 is newer than the tested versions"):
        check_version("0.20.0")
    monkeypatch.setattr(machine, "version_of", lambda _: "1.0")
    (line,) = check_deepspeed()
    assert (line.status, line.found) == ("warn", "1.0: newer than the tested versions")


@pytest.mark.parametrize("stage", range(4))
def test_names_that_are_gone_are_said_before_training(stage: int) -> None:
    """That all are there in the installed version is seen by every run of test_deepspeed.py."""
    package = SimpleNamespace(utils=SimpleNamespace(**dict.fromkeys(UTILS)))
    optimizer = SimpleNamespace(**dict.fromkeys(OPTIMIZER[stage]))
    engine = SimpleNamespace(**dict.fromkeys(ENGINE), optimizer=optimizer)
    parameter = SimpleNamespace(**dict.fromkeys(PARAMETER[stage]))
    check_names(package, engine, stage, parameter)
    del engine.was_step_applied
    with pytest.raises(UserError, match=rf"no engine\.was_step_applied at ZeRO {stage}: pip"):
        check_names(package, engine, stage, parameter)
    del package.utils.set_z3_leaf_modules
    if stage:
        delattr(optimizer, OPTIMIZER[stage][0])
        with pytest.raises(UserError, match=rf"modules, .*, optimizer\.{OPTIMIZER[stage][0]} at"):
            check_names(package, engine, stage, parameter)
        with pytest.raises(UserError, match=rf"parameter\.{PARAMETER[stage][0]} at ZeRO {stage}"):
            check_names(package, engine, stage, SimpleNamespace())
