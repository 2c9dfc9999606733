"""The model that fine-tuning begins with: loaded into the generator, kept in the run directory."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.origins import origin_as_base
from fasttrain.checkpoints.saved import BASE, SavedRun, keep_base
from fasttrain.data.locate import storage_of
from fasttrain.models.build import activation_dtype, new_network, prepare_network
from fasttrain.models.files.model_file import ModelFile, ModelInfo
from fasttrain.models.freezing import select_trained
from fasttrain.models.latents import scaling
from fasttrain.models.load import load_weights, open_model, starting_weights
from fasttrain.settings import RunSettings
from fasttrain.settings.generator import GeneratorSettings
from fasttrain.system.errors import UserError
from fasttrain.system.files import awaited, sha256
from fasttrain.system.processes import World
from fasttrain.training.run.progress import say
from fasttrain.training.run.run import Run
from fasttrain_data.errors import shown

__all__ = ["check_init", "restore_base"]

NAMED = 5
"""Most classes of a line."""


def load_init(settings: GeneratorSettings, generator: Any, world: World) -> dict[str, str]:
    """Load the model that `init` names into the generator, and say how its classes are the data's;
    returns that model's origin."""
    init = open_model(settings.init)
    line = check_init(settings, init)
    load_weights(generator, init)
    if line:
        say(settings, world, f"begins with {settings.init}: {line}")
    return origin_as_base(init.origin)


def check_init(settings: RunSettings, init: SavedRun | ModelFile) -> str:
    """A line about its classes, if there is something to say. Raises UserError when the model is
    known not to be of the network, the latents or the classes of the settings."""
    check_same_network(settings, init)
    check_same_step(settings, init)
    check_same_latents(settings, init)
    return check_same_classes(settings, init)


def check_same_network(settings: RunSettings, init: SavedRun | ModelFile) -> None:
    """Raises UserError when a model is known to compute in another way than the settings' network,
    which weights that fit would hide."""
    info = ModelInfo.of(init) if isinstance(init, SavedRun) else init.info
    if info is None:
        return
    ours, theirs = settings.network, info.network
    anyway: dict[str, None] = {"sigma_min": None, "sigma_max": None}
    if info.task == "pretrain":  # a generator's boundary is the recipe's to choose
        anyway["eps"] = None
    pairs = (
        ("model_type", ours.model_type, theirs.model_type),
        ("options", ours.options, theirs.options),
        (
            "prediction",
            ours.prediction.model_copy(update=anyway),
            theirs.prediction.model_copy(update=anyway),
        ),
    )
    for name, own, other in pairs:
        if own != other:
            where = (
                "write the network's settings with `fasttrain import FILE --network network.yaml`"
            )
            if isinstance(init, SavedRun):  # which is no FILE
                where = f"its settings are `network` in {init.path / 'config.yaml'}"
            raise UserError(
                f"{init.path} is of another network.{name} than the recipe's: {where}, and base "
                f"the recipe on them"
            )


def check_same_step(settings: RunSettings, init: SavedRun | ModelFile) -> None:
    """Raises UserError when a generator makes its images from another noise level than the run
    would ask of it."""
    info = ModelInfo.of(init) if isinstance(init, SavedRun) else init.info
    theirs, ours = None if info is None else info.sigma, getattr(settings, "sigma", None)
    if theirs is not None and ours is not None and theirs != ours:
        raise UserError(
            f"{init.path} is a generator of noise level {theirs:g}, and the run's is {ours:g}: set "
            f"sigma to {theirs:g}"
        )


def check_same_latents(settings: RunSettings, init: SavedRun | ModelFile) -> None:
    """Raises UserError when a model is known to see latents by other numbers than the run's, or
    latents where the run has images."""
    info = ModelInfo.of(init) if isinstance(init, SavedRun) else init.info
    theirs, wanted = (None if info is None else info.latents), settings.latents
    if theirs is None:
        return
    if wanted is None:
        raise UserError(f"{init.path} is a model of latents: set latents.vae and name their shards")
    index = storage_of(settings.data).index()
    if index.latents is None:
        return  # said by `open_data`
    ours = scaling(index.latents, index.channels, wanted.scale, wanted.bias)
    if theirs.low != ours.low:
        raise UserError(
            f"{init.path} was trained on latents of images with black at {theirs.low:g}: encode "
            f"them again with --low {theirs.low:g}"
        )
    pairs = zip((*theirs.scale, *theirs.bias), (*ours.scale, *ours.bias), strict=False)
    if len(theirs.scale) != len(ours.scale) or any(abs(a - b) > 1e-4 * abs(a) for a, b in pairs):
        raise UserError(
            f"{init.path} sees latents by other numbers than the run: set "
            f"latents.scale={_listed(theirs.scale)} latents.bias={_listed(theirs.bias)}"
        )


def check_same_classes(settings: RunSettings, init: SavedRun | ModelFile) -> str:
    """Raises UserError when a model is known to have a class of the data under another number: its
    embedding would be trained on the images of another class. Other names are taken by number,
    which the returned line says."""
    info = ModelInfo.of(init) if isinstance(init, SavedRun) else init.info
    if not settings.network.label_dim:
        return ""
    if info is None or not info.classes:
        return "its classes have no names known here, and are taken by number"
    index = storage_of(settings.data, settings.network).index()
    theirs = {name: number for number, name in enumerate(info.classes)}
    for number, entry in enumerate(index.classes):
        there = theirs.get(entry.name, number)
        if there != number:
            raise UserError(
                f"class {entry.name} is number {number} of the data and {there} of {init.path}: "
                f"convert the images again with --class-names, in the order of the model's classes"
            )
    pairs = zip((entry.name for entry in index.classes), info.classes, strict=False)
    others = [f"{shown(ours)} begins as {shown(name)}" for ours, name in pairs if ours != name]
    if not others:
        return ""
    more = f", and {len(others) - NAMED:,} more" if len(others) > NAMED else ""
    return f"classes of other names are taken by number: {', '.join(others[:NAMED])}{more}"


def _listed(numbers: Sequence[float]) -> str:
    return "[" + ",".join(f"{number:.8g}" for number in numbers) + "]"


def load_base(
    settings: GeneratorSettings, run: Run, generator: Any, origin: dict[str, str] | None
) -> None:
    """Load the model that the run begins, or began, with into the generator, and keep it in the run
    directory: checkpoints hold only what trains, and name the rest by its SHA-256.

    origin: of the model that was already loaded from `init`; None when none was.
    """
    start, world = run.start, run.world
    if start is None:
        if origin is None:  # all checkpoints are damaged
            with world.agreed():
                origin = load_init(settings, generator, world)
        digest = world.on_main(lambda: keep_base(run.path, generator.state_dict()))
    else:
        world.on_main(lambda: restore_base(run.path, start, settings.init, generator))
    with world.agreed():
        if start is not None:
            digest = start.state["base"]["sha256"]
            origin = start.state["base"].get("origin", {})
            load_weights(generator, awaited(run.path / BASE))
        select_trained(generator, settings)
        prepare_network(generator, settings, world.device)
    frozen = str(activation_dtype(settings, world.device)).removeprefix("torch.")
    run.base = {"sha256": digest, "frozen": frozen} | ({"origin": origin} if origin else {})


def frozen_start(settings: RunSettings, run: Run) -> Any:
    """The diffusion model that the run began with, frozen, as the run keeps it."""
    network = new_network("edm", settings.network).eval().requires_grad_(False)
    load_weights(network, awaited(run.path / BASE))
    prepare_network(network, settings, run.world.device)
    return network


def trained_start(settings: RunSettings, run: Run) -> Any:
    """The same diffusion model, of which everything trains; without dropout."""
    network = new_network("edm", settings.network).eval()
    load_weights(network, awaited(run.path / BASE))
    prepare_network(network, settings, run.world.device)
    return network


def base_of(step: checkpoint.Step) -> dict[str, Any]:
    """A checkpoint's entries about the model that its fine-tuning began with. Raises UserError."""
    base: dict[str, Any] | None = step.state.get("base")
    if not base:
        raise UserError(f"{step.path / 'state.json'} does not name the run's base model")
    return base


def restore_base(run: Path, step: checkpoint.Step, init: Path, network: nn.Module) -> None:
    """Restore a missing or damaged base model from `init`, if that is unchanged."""
    expected = base_of(step)["sha256"]
    path = run / BASE
    if path.is_file() and sha256(path) == expected:
        return
    try:
        found = keep_base(run, starting_weights(network, open_model(init)))
    except UserError as error:
        found = str(error)
    if found != expected:
        path.unlink(missing_ok=True)
        raise UserError(
            f"{path}, the model that this run began with, is missing or damaged, and {init} is "
            f"another model: put the file back (SHA-256 {expected[:12]}...)"
        )
    warnings.warn(f"{path} was missing or damaged: restored from {init}", stacklevel=2)
