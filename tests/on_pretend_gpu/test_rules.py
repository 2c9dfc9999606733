"""The pretend GPU allows and refuses what CUDA does."""

from __future__ import annotations

import pytest

from tests.on_pretend_gpu import device_rules, runtime_rules
from tests.on_pretend_gpu.machine import Machine
from tests.on_pretend_gpu.rules import RULES

FILLED_BY = (device_rules, runtime_rules)


@pytest.fixture(scope="module")
def checked(machine: Machine) -> dict[str, str]:
    """All rules, checked in one process."""
    return machine.run("rules:check")[0]


@pytest.mark.parametrize("name", RULES)
def test_rule(name: str, checked: dict[str, str]) -> None:
    assert checked[name] == "", checked[name]
