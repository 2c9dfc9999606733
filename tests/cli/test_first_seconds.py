"""What a command imports before it does anything."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

LOOK = """
import sys
from fasttrain.models.audit import audit_of
from fasttrain.settings.recipes import load_settings, written
from fasttrain.settings.trainings import TRAININGS

for name in sys.argv[1:]:
    audit_of(load_settings(name, [], TRAININGS[written(name, []).values["task"]].schema))
assert "torch._dynamo" not in sys.modules, "the compiler was imported: 2 s"
"""


@pytest.mark.slow
def test_a_dry_run_builds_networks_without_the_compiler() -> None:
    """A recipe of each family of networks: ADM, DDPM++ and NCSN++, EDM2."""
    recipes = ["imagenet64-d2o-f", "cifar10-uncond-d2o-f", "digits-edm", "imagenet64-edm2-s-d2o-f"]
    done = subprocess.run(
        [sys.executable, "-c", LOOK, *recipes], env=os.environ, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
