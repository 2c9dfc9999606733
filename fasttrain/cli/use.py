"""Verbs that use models: import, export, sample."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fasttrain.cli.options import Churn, ModelPath, Which, app
from fasttrain.system.errors import UserError


@app.command(name="import")
def import_(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A .pkl or training-state .pt of EDM's, a state dict, or a .safetensors file.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The safetensors file to write; beside FILE by default.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Fine-tuning recipe with the network of a plain state dict.")
    ] = None,
) -> None:
    """Convert a published checkpoint to self-describing weights, without running code from it.

    Example: fasttrain import edm-imagenet-64x64-cond-adm.pkl
    """
    from fasttrain.models.files.importing import import_model
    from fasttrain.settings import FinetuneSettings
    from fasttrain.settings.recipes import load_settings

    network = load_settings(recipe, [], FinetuneSettings).network if recipe else None
    print(import_model(file, out or file.with_suffix(".safetensors"), network).text())


@app.command()
def export(
    model: ModelPath,
    to: Annotated[
        str, typer.Option(metavar="FORMAT", help="safetensors, diffusers (a folder) or onnx.")
    ] = "safetensors",
    out: Annotated[
        Path | None,
        typer.Option(help="generator.safetensors, generator.onnx or pipeline by default."),
    ] = None,
    base_licence: Annotated[
        str | None, typer.Option(help="Licence of the base model's weights, for the model card.")
    ] = None,
    checkpoint: Which = "latest",
) -> None:
    """Write the averaged network's full weights, merged with the base model, with a model card.

    A diffusers folder and an ONNX file generate images in one step, without fasttrain.
    """
    from fasttrain.checkpoints.saved import SavedRun
    from fasttrain.evaluation.result import card_numbers
    from fasttrain.models.export import FORMATS, export_model
    from fasttrain.models.load import open_model

    if to not in FORMATS:
        raise UserError(f"--to {to}: choose one of {', '.join(FORMATS)}")
    source = open_model(model, checkpoint)
    numbers = card_numbers(model, source.images) if isinstance(source, SavedRun) else None
    print(export_model(source, out, to=to, base_licence=base_licence, numbers=numbers))


@app.command()
def sample(
    model: ModelPath,
    seeds: Annotated[
        str | None, typer.Option(help="Seeds: 0-63 (the default), or 1,5,8-11.")
    ] = None,
    out: Annotated[
        str, typer.Option(metavar="PATH", help="The PNG to write, or DIR/ for a file an image.")
    ] = "grid.png",
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Heun steps of a diffusion model, 18 by default; 1: one step."),
    ] = None,
    churn: Churn = None,
    label: Annotated[
        str | None, typer.Option("--class", help="One class; default: all in turn.")
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(metavar="classes", help="A row for each class, with the same seeds (0-7)."),
    ] = None,
    interpolate: Annotated[
        str | None, typer.Option(metavar="A,B", help="A strip from one seed to the other.")
    ] = None,
    steps_between: Annotated[int, typer.Option(min=0, help="Images between its ends.")] = 8,
    batch: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 256,
    checkpoint: Which = "latest",
) -> None:
    """Generate images from seeds. A seed gives the same image in any batch, up to rounding.

    Example: fasttrain sample runs/digits-d2o-f --grid classes --seeds 0-9 --out classes.png
    """
    from fasttrain.sampling.sample import Wanted, sample_model

    if grid not in (None, "classes"):
        raise UserError(f"--grid {grid}: the only choice is `classes`")
    wanted = Wanted(
        seeds=seeds,
        classes=label,
        grid="classes" if grid else None,
        interpolate=interpolate,
        between=steps_between,
        steps=steps,
        churn=churn,
        batch=batch,
        which=checkpoint,
    )
    print(sample_model(model, out, wanted))
