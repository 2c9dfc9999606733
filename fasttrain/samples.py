"""`fasttrain sample`: images of given seeds from a run, as one PNG.

sample_run(Path("runs/digits-d2o-f"), "0-63", Path("grid.png"))
"""

from __future__ import annotations

from pathlib import Path

from fasttrain.errors import UserError
from fasttrain.generation import generate
from fasttrain.models import load_run
from fasttrain.pictures import save_grid
from fasttrain.sampling import heun_sampler, one_step

__all__ = ["parse_seeds", "sample_run"]

MOST = 100_000
"""Images that one grid may hold."""


def parse_seeds(text: str) -> list[int]:
    """`0-63` or `1,5,8-11` -> seeds. Raises UserError on anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise UserError(f"--seeds {text!r}: write them as 0-63 or 1,5,8-11")
        low, high = int(first), int(last if dash else first)
        if high < low or high - low >= MOST or high >= 2**63:
            raise UserError(
                f"--seeds {text!r}: a range goes from the smaller seed up, over at most {MOST:,}, "
                f"below 2^63"
            )
        seeds += range(low, high + 1)
    return seeds


def sample_run(
    run: Path,
    seeds: str,
    out: Path,
    *,
    steps: int | None = None,
    label: int | None = None,
    which: str = "latest",
) -> Path:
    """Write the grid and return its path.

    steps: Heun steps of a diffusion run, 18 when not given; 1 is one step from the highest noise.
    """
    numbers = parse_seeds(seeds)
    network, settings = load_run(run, which)
    if settings.task == "finetune" and steps not in (None, 1):
        raise UserError(
            f"{run} is a one-step generator: leave --steps out, or name a diffusion run"
        )
    if label is not None and not 0 <= label < settings.network.label_dim:
        raise UserError(
            f"--class {label}: the network has classes 0 to {settings.network.label_dim - 1}"
            if settings.network.label_dim
            else f"--class {label}: the network is unconditional"
        )
    if settings.task == "finetune":
        images = generate(one_step, network, numbers, label=label, sigma=settings.sigma)
    elif steps == 1:
        images = generate(one_step, network, numbers, label=label)
    else:
        images = generate(heun_sampler, network, numbers, label=label, num_steps=steps or 18)
    save_grid(images, out)
    return out
