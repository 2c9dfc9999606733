"""Verbs that train: demo, pretrain, finetune, distill, frechet, launch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fasttrain.cli.options import DryRun, LocalRank, Overrides, Recipe, app
from fasttrain.cli.processes import training_processes

if TYPE_CHECKING:
    from fasttrain.settings import RunSettings


UNKNOWN = {"ignore_unknown_options": True}
"""`--images 100` then gets the line that says how a setting is written."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that is written.")] = Path(
        "demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Seed of every random draw.")] = 0,
) -> None:
    """The whole story on real handwritten digits, in minutes on a laptop CPU."""
    from fasttrain.cli.demo import run_demo

    run_demo(out, seed)


@app.command(context_settings=UNKNOWN)
def pretrain(
    recipe: Recipe,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    local_rank: LocalRank = None,
) -> None:
    """Train a diffusion model. The same command resumes the run.

    Example: fasttrain pretrain digits-edm images=60000
    """
    from fasttrain.settings import PretrainSettings
    from fasttrain.settings.recipes import load_settings

    settings = load_settings(recipe, overrides or [], PretrainSettings)
    if dry_run:
        _print_dry_run(settings)
        return
    from fasttrain.training.pretrain import pretrain as train

    with training_processes(settings) as world:
        train(settings, world)


@app.command(context_settings=UNKNOWN)
def finetune(
    recipe: Recipe,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    local_rank: LocalRank = None,
) -> None:
    """Turn a diffusion model into a one-step generator. The same command resumes the run.

    Example: fasttrain finetune digits-d2o-f images=3000 r1.gamma=0.1
    """
    from fasttrain.settings import FinetuneSettings
    from fasttrain.settings.recipes import load_settings

    settings = load_settings(recipe, overrides or [], FinetuneSettings)
    if dry_run:
        _print_dry_run(settings)
        return
    from fasttrain.training.finetune import finetune as train

    with training_processes(settings) as world:
        train(settings, world)


@app.command(context_settings=UNKNOWN)
def distill(
    recipe: Recipe,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    local_rank: LocalRank = None,
) -> None:
    """Distil a diffusion model into a one-step generator, by the methods that D2O is compared with.

    Example: fasttrain distill digits-cd method=ctm
    """
    from fasttrain.settings import DistillSettings
    from fasttrain.settings.recipes import load_settings

    settings = load_settings(recipe, overrides or [], DistillSettings)
    if dry_run:
        _print_dry_run(settings)
        return
    from fasttrain.training.distill import distill as train

    with training_processes(settings) as world:
        train(settings, world)


@app.command(context_settings=UNKNOWN)
def frechet(
    recipe: Recipe,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    local_rank: LocalRank = None,
) -> None:
    """Make a one-step generator by the Frechet distance of features, without a discriminator.

    Example: fasttrain frechet digits-fd-f images=3000
    """
    from fasttrain.settings import FrechetSettings
    from fasttrain.settings.recipes import load_settings

    settings = load_settings(recipe, overrides or [], FrechetSettings)
    if dry_run:
        _print_dry_run(settings)
        return
    from fasttrain.training.frechet import frechet as train

    with training_processes(settings) as world:
        train(settings, world)


@app.command(context_settings=UNKNOWN)
def launch(
    command: Annotated[
        list[str], typer.Argument(metavar="-- finetune RECIPE ...", help="What to run.")
    ],
    hostfile: Annotated[
        Path | None, typer.Option(help="Hosts, as for `deepspeed`; default: this machine.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="Use the first N hosts.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Processes of each host.")] = None,
    master_addr: Annotated[str | None, typer.Option(help="Address of the first host.")] = None,
    master_port: Annotated[int | None, typer.Option(help="A free port there.")] = None,
    max_restarts: Annotated[
        int,
        typer.Option(min=0, help="Restarts after failures without a newer checkpoint."),
    ] = 0,
    min_gpus: Annotated[
        int | None,
        typer.Option(min=1, help="Run without hosts that do not answer, on at least N GPUs."),
    ] = None,
    pause: Annotated[float, typer.Option(min=0, hidden=True, help="Seconds to a restart.")] = 10,
) -> None:
    """Train in a process for each GPU, on one or many hosts, and restart failed jobs.

    SIGTERM, SIGUSR1 and Ctrl-C stop it with a checkpoint. Example:
    fasttrain launch --gpus 8 --max-restarts 3 -- finetune imagenet64-d2o-f
    """
    from fasttrain.cli.hosts import Hosts
    from fasttrain.cli.launcher import launch as start

    hosts = Hosts(
        hostfile=hostfile,
        nodes=nodes,
        gpus=gpus,
        master_addr=master_addr,
        master_port=master_port,
        min_gpus=min_gpus,
    )
    raise typer.Exit(start(command, hosts, max_restarts=max_restarts, pause=pause))


def _print_dry_run(settings: RunSettings) -> None:
    from fasttrain.models.audit import dry_run

    print(dry_run(settings))
