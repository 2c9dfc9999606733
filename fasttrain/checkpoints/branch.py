"""A run that starts as a copy of another run's checkpoint: `from: RUN@IMAGES`.

branch(trunk_of(settings), settings.run)   # checkpoint, base model, statistics up to it

The copy is the whole state of the training: weights, moments, average, place in the data. The new
run then goes on as if it had been stopped there, with its own settings.
"""

from __future__ import annotations

from pathlib import Path

from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.rates import flat
from fasttrain.checkpoints.saved import SavedRun, keep_base
from fasttrain.checkpoints.stats import read_stats, sealed
from fasttrain.settings import RunSettings
from fasttrain.system.errors import UserError
from fasttrain.system.files import write_atomic

__all__ = ["branch", "trunk_of"]

FIXED = ("task", "network", "freeze", "adapt", "form", "judges", "class_length")
"""Settings that a saved state is of."""
JUDGE = ("discriminator", "gan.discriminator")
"""The same of a discriminator; one beside another objective may be left out."""
FREE = tuple(f"{judge}.{part}" for judge in JUDGE for part in ("optimizer", "precision", "augment"))
"""Of these, what it is not of."""


def trunk_of(settings: RunSettings) -> SavedRun:
    """The run that `from` names at its checkpoint. Raises UserError when there is none, or when
    these settings cannot go on with it."""
    assert settings.from_ is not None
    path, _, which = settings.from_.rpartition("@")
    if Path(path) == settings.run:
        raise UserError(f"from: {settings.from_}: a run cannot branch from itself; set run=DIR")
    trunk = SavedRun.open(Path(path), which)
    old, new = (flat(s.model_dump(mode="json")) for s in (trunk.settings, settings))
    judges = JUDGE if getattr(settings, "gan", None) is not None else JUDGE[:1]
    for name in sorted(old.keys() | new.keys()):
        fixed = _under(name, (*FIXED, *judges))
        if fixed and not _under(name, FREE) and old.get(name) != new.get(name):
            raise UserError(
                f"from: {path} has {name} {old.get(name)!r}, and these settings {new.get(name)!r}: "
                f"its checkpoint is of another training"
            )
    if settings.images <= trunk.images:
        raise UserError(
            f"from: {path} has seen {trunk.images:,} images at this checkpoint: set images above"
        )
    return trunk


def branch(trunk: SavedRun, run: Path) -> None:
    """Copy a checkpoint into another run's directory, whose lock the caller holds."""
    if trunk.state.get("base"):
        keep_base(run, trunk.base)
    lines = [line for line in read_stats(trunk.path) if line["images"] <= trunk.images]
    write_atomic(run / "stats.jsonl", "".join(map(sealed, lines)))
    names = [path.stem for path in trunk.step.path.glob("*.safetensors")]
    tensors = {name: trunk.step.tensors(name) for name in names}
    origin = {"run": trunk.path.name, "images": trunk.images}
    checkpoint.save(run / "checkpoints", trunk.images, tensors, {**trunk.state, "branch": origin})


def _under(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)
