"""Verbs that measure: evaluate, reference-stats, analyze, class-features, profile, plan, doctor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from fasttrain.cli.options import (
    MACHINE,
    MEASURE,
    AsJson,
    Batch,
    Churn,
    ComputedIn,
    CountedGpu,
    ExtractorName,
    LocalRank,
    ModelPath,
    Overrides,
    Price,
    ProfilePath,
    Recipe,
    Resolution,
    TrustUrls,
    Vae,
    WeightsPath,
    Which,
    app,
)
from fasttrain.cli.processes import alone_or_together
from fasttrain.system.errors import UserError


@app.command(rich_help_panel=MEASURE)
def evaluate(
    model: ModelPath,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="REF",
            help="Shard set, folder of images, or .npz of statistics; the run's data by default.",
        ),
    ] = None,
    extractor: ExtractorName = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=2, help="Images to generate; default: as many as REF has, 50,000 at most."
        ),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Instead of --samples: 50000-99999.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Heun steps of a diffusion model, 18 by default.")
    ] = None,
    churn: Churn = None,
    metrics: Annotated[
        str | None,
        typer.Option(help="From fd, fd_full, kd, precision, recall, is; all by default."),
    ] = None,
    resolution: Resolution = None,
    weights: WeightsPath = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images in a batch.")] = None,
    precision: ComputedIn = None,
    save_images: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep images.")] = None,
    fdr: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="FDr of a run over extractors: lite2,dino_vits16."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The result's file; in RUN by default.")] = None,
    checkpoint: Which = "latest",
    vae: Vae = None,
    trust_urls: TrustUrls = False,
    as_json: AsJson = False,
    local_rank: LocalRank = None,
) -> None:
    """Compare a model's images with real ones; the protocol is printed with the metrics.

    With a run as MODEL and no other options: its table beside the diffusion model and real images.
    Example: fasttrain evaluate runs/digits-d2o-f
    Several processes share the work:
    torchrun --nproc-per-node 8 -m fasttrain evaluate RUN --extractor inception
    """
    from fasttrain.evaluation.result import text
    from fasttrain.models.files.exported import is_exported

    def show(result: Mapping[str, Any]) -> None:
        print(json.dumps(result, indent=1) if as_json else text(result), flush=True)

    options = (data, extractor, samples, seeds, steps, churn, metrics, resolution, weights, vae)
    has_options = any(option is not None for option in (*options, precision, save_images))
    if fdr is not None:
        from fasttrain.evaluation.ratio import evaluate_ratio, ratio_text

        if has_options:
            raise UserError("--fdr evaluates a run as its settings say: leave other options out")
        names = [name.strip() for name in fdr.split(",") if name.strip()]
        with alone_or_together() as world:
            result = evaluate_ratio(
                model, names, checkpoint, world, batch, trust_urls=trust_urls, out=out
            )
            if world.is_main:
                print(json.dumps(result, indent=1) if as_json else ratio_text(result))
        return
    if model.is_dir() and not has_options and not is_exported(model):
        from fasttrain.evaluation.summary import evaluate_run

        with alone_or_together() as world:
            evaluate_run(model, checkpoint, world, batch, trust_urls=trust_urls, out=out, show=show)
        return
    from fasttrain.evaluation.measure import evaluate_model
    from fasttrain.evaluation.request import Request

    request = Request(
        data=data,
        extractor=extractor or "lite2",
        weights=weights,
        samples=samples,
        seeds=seeds,
        steps=steps,
        churn=churn,
        metrics=tuple(name.strip() for name in metrics.split(",")) if metrics is not None else None,
        resolution=resolution,
        batch=batch or 64,
        precision=cast(Any, precision or "float32"),
        checkpoint=checkpoint,
        vae=vae,
        save_images=save_images,
        trust_urls=trust_urls,
        out=out,
    )
    with alone_or_together() as world:
        evaluate_model(model, request, world, show)


@app.command(name="reference-stats", rich_help_panel=MEASURE)
def reference_stats(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="A shard set, or a folder of images.")
    ],
    out: Annotated[Path, typer.Option(help="The .npz file to write.")],
    extractor: ExtractorName = None,
    resolution: Resolution = None,
    weights: WeightsPath = None,
    batch: Batch = 64,
    local_rank: LocalRank = None,
) -> None:
    """Store mean and covariance of real images' features, for `evaluate --data FILE.npz`.

    EDM's tools can read the file, too, if the extractor is inception.
    Example: fasttrain reference-stats data/digits --out digits.npz
    """
    from fasttrain.evaluation.measure import reference_stats as write
    from fasttrain.evaluation.request import Request

    request = Request(
        extractor=extractor or "lite2", weights=weights, resolution=resolution, batch=batch
    )
    with alone_or_together() as world:
        about = write(data, out, request, world)["reference"]
        if world.is_main:
            print(f"statistics of {about['images']:,} images: {out}")


@app.command(rich_help_panel=MEASURE)
def analyze(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="budget, freezing, pretraining, minima, frequency, objectives, or all.",
        ),
    ],
    base: Annotated[
        Path, typer.Option(metavar="MODEL", help="A diffusion model: run, file or shelf's name.")
    ] = Path("runs/digits-edm"),
    recipe: Annotated[str, typer.Option(help="Recipe of the fine-tunings.")] = "digits-d2o-f",
    out: Annotated[Path, typer.Option(help="Folder of runs, results and page.")] = Path("findings"),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each fine-tuning.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="An eighth of the images.")] = False,
) -> None:
    """Repeat an experiment of the paper: OUT/NAME.json and a section of OUT/findings.html.

    Finished runs and results of the same base weights and settings are taken as they are; the same
    command goes on where it stopped.
    Example: fasttrain analyze freezing --quick
    """
    from fasttrain.analysis.findings.lab import Lab
    from fasttrain.analysis.findings.page import analyze as measure

    with alone_or_together() as world:
        named = base.absolute() if base.exists() else base  # else one of the shelf
        page = measure(name, Lab(named, recipe, out.absolute(), world, seeds=seeds, quick=quick))
        if world.is_main:
            print(f"findings: {page}")


@app.command(name="class-features", rich_help_panel=MEASURE)
def class_features(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A folder of shards.")],
    resolution: Annotated[
        int, typer.Option(help="Of the recipe's lite0 backbone; images are resized to it.")
    ] = 224,
    out: Annotated[
        Path | None, typer.Option(help="The file to write; beside the data by default.")
    ] = None,
) -> None:
    """Store the mean features of each class beside the data, as initial class embeddings.

    Without them fine-tuning averages a few hundred images of each class.
    Example: fasttrain class-features data/digits --resolution 64
    """
    import torch

    from fasttrain.discriminator.class_means import store_class_features

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"class features: {store_class_features(data, resolution, device, out)}")


@app.command(rich_help_panel=MACHINE)
def profile(
    recipe: Recipe,
    overrides: Overrides = None,
    device: Annotated[
        str | None, typer.Option(help="`cuda`, `cuda:1` or `cpu`; the GPU if there is one.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images of an iteration.")] = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="Repetitions.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of profile.json and trace.json.")] = None,
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile", help="The torch.compile column; on a GPU by default."
        ),
    ] = None,
) -> None:
    """Measure a fine-tuning iteration by phase and operator, beside other implementations.

    Needs no data and no base model.
    Example: fasttrain profile imagenet64-d2o-f --device cpu
    """
    from fasttrain.analysis.profiling import profile_recipe

    result = profile_recipe(
        recipe,
        overrides or [],
        device=device,
        batch=batch,
        iterations=iterations,
        out=out,
        compiled=compiled,
    )
    if result["wrong"]:
        raise typer.Exit(1)


@app.command(rich_help_panel=MACHINE)
def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of each node.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    profile: ProfilePath = None,
    gpu: CountedGpu = "h200",
    price: Price = None,
    out: Annotated[Path | None, typer.Option("--json", help="Also write it as JSON.")] = None,
) -> None:
    """Compute what a fine-tuning recipe needs on N GPUs: memory, traffic, time, disk.

    Needs no GPU, no data and no weights.
    Example: fasttrain plan imagenet64-d2o-f --gpus 8
    """
    from fasttrain.analysis.planning import make_plan
    from fasttrain.settings import FinetuneSettings
    from fasttrain.settings.recipes import load_settings
    from fasttrain.system.files import probe, write_atomic

    settings = load_settings(recipe, overrides or [], FinetuneSettings, ahead=True)
    if out is not None:
        probe(out)
    result = make_plan(settings, gpus=gpus, nodes=nodes, profile=profile, gpu=gpu, price=price)
    print(result.table())
    if out is not None:
        write_atomic(out, json.dumps(result.to_dict(), indent=1))


@app.command(rich_help_panel=MACHINE)
def doctor() -> None:
    """Check this machine: versions, devices, triton, deepspeed, weights, write access.

    Example: fasttrain doctor
    """
    from fasttrain.cli.doctor.examine import examine

    if not examine():
        raise typer.Exit(1)
