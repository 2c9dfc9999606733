"""The waiting of OpenMP's threads, set before torch reads it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fasttrain.system.threads import OWN, TURNS, spin_briefly

ROOT = Path(__file__).parents[2]


def python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new process that has these variables and none of the user's."""
    environment = {name: value for name, value in os.environ.items() if name not in OWN}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), **variables}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )


@pytest.mark.parametrize(
    ("own", "turns"),
    [({}, str(TURNS)), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, None)],
)
def test_the_users_own_setting_wins(own: dict[str, str], turns: str | None) -> None:
    environment = dict(own)
    spin_briefly(environment)
    assert environment.get("GOMP_SPINCOUNT") == turns
    assert own.items() <= environment.items()


def test_it_is_set_before_torch_is_imported_and_inherited() -> None:
    """By the package itself, so by every entry point, whose modules all lie in it."""
    told = "import os, subprocess, sys, fasttrain; assert 'torch' not in sys.modules; "
    told += "subprocess.run(['sh', '-c', 'echo $GOMP_SPINCOUNT'])"
    assert python(told).stdout == f"{TURNS}\n"
    assert python(told, OMP_WAIT_POLICY="PASSIVE").stdout == "\n"
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["fasttrain"].startswith("fasttrain.")


@pytest.mark.slow
def test_torchs_openmp_has_read_it() -> None:
    said = python("import fasttrain, torch", OMP_DISPLAY_ENV="VERBOSE").stderr
    if "GOMP_SPINCOUNT" not in said:
        pytest.skip("torch was built with another OpenMP than GNU's")
    assert f"GOMP_SPINCOUNT = '{TURNS}'" in said
