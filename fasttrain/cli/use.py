"""Verbs that use models: import, export, sample."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from fasttrain.cli import completing
from fasttrain.cli.options import (
    USE,
    AsJson,
    Churn,
    ComputedIn,
    LocalRank,
    ModelPath,
    Vae,
    Which,
    app,
)
from fasttrain.cli.processes import alone_or_together
from fasttrain.system.errors import Stopped, UserError


@app.command(name="import", rich_help_panel=USE)
def import_(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A model: of EDM's, EDM2's or SiD's, of guided-diffusion, the consistency models, "
            "score_sde, DiT, SiT or latent-diffusion; a folder of diffusers'; a state dict; a "
            ".safetensors file.",
        ),
    ],
    options: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=VALUE]...",
            help="What the file does not say, by its own code's names, such as num_heads=4.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The safetensors file to write; beside FILE by default.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Fine-tuning recipe with the network of a plain state dict.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Settings that the model was trained with, YAML or JSON."),
    ] = None,
    one_step: Annotated[
        bool | None,
        typer.Option("--one-step/--diffusion", help="Whether it is a one-step generator (SiD)."),
    ] = None,
    sigma: Annotated[
        float | None, typer.Option(help="Noise level of a generator's step; SiD: 2.5.")
    ] = None,
    network: Annotated[
        Path | None,
        typer.Option(help="YAML to write with the network's settings, for a recipe to extend."),
    ] = None,
) -> None:
    """Turn a published model into weights that say what they are, running nothing in it.

    Example: fasttrain import edm-imagenet-64x64-cond-adm.pkl
    """
    from fasttrain.models.files.families.options import Options
    from fasttrain.models.files.importing import import_model
    from fasttrain.settings import FinetuneSettings
    from fasttrain.settings.recipes import load_settings
    from fasttrain.system.files import probe

    of_recipe = load_settings(recipe, [], FinetuneSettings).network if recipe else None
    options_ = Options.of(file, options or [], config, one_step, sigma)
    named = Path(os.path.abspath(file))  # a link's target may lie in a cache
    target = out or named.parent / f"{named.name if file.is_dir() else named.stem}.safetensors"
    if out is None and target.is_symlink():
        raise UserError(f"{target} is a link: name the file to write with --out")
    if network is not None:
        probe(network)
    imported = import_model(file, target, of_recipe, options_)
    if network is not None:
        imported.write_network(network)
    print(imported.text())
    if network is not None:
        print(f"network's settings: {network}, for a recipe with `extends: {network}`")


@app.command(rich_help_panel=USE)
def export(
    model: ModelPath,
    to: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="safetensors, onnx, or a folder: diffusers, hub.",
            autocompletion=completing.formats,
        ),
    ] = "safetensors",
    out: Annotated[
        Path | None,
        typer.Option(help="generator.safetensors, generator.onnx, pipeline or hub by default."),
    ] = None,
    base_licence: Annotated[
        str | None, typer.Option(help="Licence of the base model's weights, for the model card.")
    ] = None,
    checkpoint: Which = "latest",
    vae: Vae = None,
) -> None:
    """Write the averaged network's full weights, merged with the base model, with a model card.

    A diffusers folder and an ONNX file generate images in one step, without fasttrain. `hub` is a
    diffusers folder with a picture and metrics for the Hugging Face hub.
    Example: fasttrain export runs/digits-d2o-f --to diffusers --out pipeline
    """
    from fasttrain.checkpoints.saved import SavedRun
    from fasttrain.evaluation.kept import card_quality
    from fasttrain.models.export import FORMATS, export_model
    from fasttrain.models.load import open_model
    from fasttrain.sampling.preview import preview_png

    if to not in FORMATS:
        raise UserError(f"--to {to}: choose one of {', '.join(FORMATS)}")
    source = open_model(model, checkpoint)
    quality = card_quality(model, source.images) if isinstance(source, SavedRun) else None
    print(
        export_model(
            source,
            out,
            to=to,
            base_licence=base_licence,
            vae=vae,
            quality=quality,
            picture=preview_png,
        )
    )


@app.command(rich_help_panel=USE)
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
        str | None, typer.Option("--class", help="A class by name or number; default: all in turn.")
    ] = None,
    grid: Annotated[
        str | None,
        typer.Option(metavar="classes", help="A row for each class, with the same seeds (0-7)."),
    ] = None,
    interpolate: Annotated[
        str | None, typer.Option(metavar="A,B", help="A strip from one seed to the other.")
    ] = None,
    steps_between: Annotated[
        int | None, typer.Option(min=0, help="Images between its ends, 8 by default.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 256,
    precision: ComputedIn = None,
    checkpoint: Which = "latest",
    vae: Vae = None,
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
        precision=cast(Any, precision or "float32"),
        which=checkpoint,
        vae=vae,
    )
    print(sample_model(model, out, wanted))


@app.command(rich_help_panel=USE)
def encode(
    images: Annotated[
        Path, typer.Argument(metavar="SET", help="A folder of shards.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(help="The folder to make.", show_default=False)],
    vae: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            help="An autoencoder: a folder as diffusers has it, or a file of latent-diffusion's.",
        ),
    ],
    flips: Annotated[
        bool, typer.Option("--flips", help="Also store the latents of the mirror images.")
    ] = False,
    low: Annotated[
        int, typer.Option(help="Black as the autoencoder sees it: -1; of EDM2's models 0.")
    ] = -1,
    batch: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 16,
    force: Annotated[bool, typer.Option("--force", help="Replace another shard set.")] = False,
    local_rank: LocalRank = None,
) -> None:
    """Write a set of images as one of latents, completely or not at all, for recipes with
    `latents`. After a crash the same command resumes.

    Example: fasttrain encode data/photos256 data/photos256-latents --vae vaes/sd-vae-ft-mse
    Several processes share the work: torchrun --nproc-per-node 8 -m fasttrain encode SET OUT ...
    """
    from fasttrain.models.files.vae import load_vae
    from fasttrain.models.latents import LatentEncoder
    from fasttrain_data.encoding import encode as write
    from fasttrain_data.progress import Interrupted, progress_bar
    from fasttrain_data.summary import summary

    if low not in (-1, 0):
        raise UserError(f"--low {low}: choose -1 or 0")
    try:
        with alone_or_together() as world, progress_bar() as progress:
            with world.agreed():
                loaded = load_vae(vae)
            encoder = LatentEncoder(loaded, world.device, flips=flips, low=-1 if low else 0)
            index, there = write(
                images,
                out,
                encoder,
                batch=batch,
                force=force,
                progress=progress if world.is_main else lambda *_: None,
                team=world,
            )
    except Interrupted:
        raise Stopped("stopped; the same command resumes") from None
    if world.is_main:
        print(f"{out}: {'already there, ' if there else ''}{summary(index)}")


@app.command(rich_help_panel=USE)
def models(as_json: AsJson = False) -> None:
    """List the models that come with the package; `sample`, `evaluate`, `export` and `init=` take
    their names.

    Example: fasttrain models
    """
    from rich.console import Console
    from rich.table import Table

    from fasttrain.models.files.shelf import describe
    from fasttrain.settings.registry import SHELF

    shelf = [describe(name) for name in SHELF]
    if as_json:
        print(json.dumps([asdict(model) for model in shelf], indent=1))
        return
    table = Table(box=None)
    table.add_column("name", min_width=max(map(len, SHELF)))  # to be typed, on any terminal
    for title in ("", "fd", "evaluations", "MB", "licence"):
        table.add_column(title, justify="right" if title in ("fd", "evaluations", "MB") else "left")
    for model in shelf:
        numbers = (f"{model.numbers['fd']:.0f}", str(model.numbers["evaluations"]))
        table.add_row(model.name, model.about, *numbers, f"{model.megabytes:.1f}", model.licence)
    Console(markup=False, highlight=False).print(table)
