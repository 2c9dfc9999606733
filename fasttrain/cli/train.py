"""Verbs that train: demo, pretrain, finetune, distill, score, meanflow, frechet, launch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fasttrain.cli.options import TRAIN, DryRun, LocalRank, Overrides, Recipe, app
from fasttrain.cli.processes import training_processes
from fasttrain.system.errors import Stopped, UserError

if TYPE_CHECKING:
    from fasttrain.settings import RunSettings


UNKNOWN = {"ignore_unknown_options": True}
"""`--images 100` then gets the line that says how a setting is written."""


@app.command(rich_help_panel=TRAIN)
def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything that is written.")] = Path(
        "demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Seed of every random draw.")] = 0,
) -> None:
    """The whole story on real handwritten digits, in minutes on a laptop CPU.

    Example: fasttrain demo --out demo
    """
    from fasttrain.cli.demo import run_demo

    run_demo(out, seed)


@app.command(rich_help_panel=TRAIN)
def new(
    name: Annotated[
        str | None, typer.Argument(help="Of the recipes; asked for when not given.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE", help="A folder or file of images, or a shard set; asked for, too."
        ),
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(metavar="MODEL", help="Start from this model; default: from scratch."),
    ] = None,
    resolution: Annotated[
        int | None, typer.Option(help="Pixels a side; proposed from the images when not given.")
    ] = None,
    hours: Annotated[
        float, typer.Option(min=0, help="Of pre-training here; fine-tuning gets half of it.")
    ] = 1.0,
    out: Annotated[Path, typer.Option(help="Folder of recipes, data and runs.")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Replace recipes of this name.")] = False,
    train: Annotated[bool, typer.Option("--train", help="Start the training at once.")] = False,
) -> None:
    """Write recipes for your own images, after a look at them and at this machine.

    Example: fasttrain new photos --data ~/Pictures/cats --train
    """
    from fasttrain.cli.new import Request
    from fasttrain.cli.new import new as write
    from fasttrain_data.progress import Interrupted

    asked = name is None or data is None
    name = name or ask("Name of the recipes")
    data = data or os.path.expanduser(ask("Folder of images, or shard set"))
    if asked and init is None and (start := ask("Model to start from (empty: from scratch)", "")):
        init = Path(os.path.expanduser(start))
    request = Request(
        name=name, data=data, init=init, resolution=resolution, hours=hours, out=out, force=force
    )
    try:
        first = write(request)[0]
    except (Interrupted, KeyboardInterrupt):
        raise Stopped("stopped; the same command goes on") from None
    if train:
        _train("finetune" if init else "pretrain", str(first), [], dry_run=False)


def ask(question: str, default: str | None = None) -> str:
    """An answer from standard input. Raises UserError when it ends before."""
    try:
        return str(typer.prompt(question, default=default, show_default=bool(default)))
    except (typer.Abort, RuntimeError):  # it ends, or is closed from the first
        raise UserError(
            "fasttrain new needs a name and images: fasttrain new photos --data FOLDER"
        ) from None


VERBS = {
    "pretrain": (
        "Train a diffusion model. The same command resumes the run.",
        "pretrain digits-edm images=60000",
    ),
    "finetune": (
        "Turn a diffusion model into a one-step generator. The same command resumes the run.",
        "finetune digits-d2o-f images=3000 r1.gamma=0.1",
    ),
    "distill": (
        "Distil a diffusion model into a one-step generator, by the methods that D2O is compared "
        "with.",
        "distill digits-cd method=ctm",
    ),
    "score": (
        "Distil a diffusion model into a one-step generator by its score, beside a GAN or alone.",
        "score digits-dmd form=sid",
    ),
    "meanflow": (
        "Make a one-step generator by the average velocity of a diffusion model, a start for a "
        "GAN.",
        "meanflow digits-meanflow share=0.5",
    ),
    "frechet": (
        "Make a one-step generator by the Frechet distance of features, without a discriminator.",
        "frechet digits-fd-f images=3000",
    ),
}
"""The verbs of trainings, each with its help and an example."""


def _add(task: str, text: str, example: str) -> None:
    """Register the verb of a training."""

    def command(
        recipe: Recipe,
        overrides: Overrides = None,
        dry_run: DryRun = False,
        local_rank: LocalRank = None,
    ) -> None:
        _train(task, recipe, overrides or [], dry_run)

    command.__doc__ = f"{text}\n\nExample: fasttrain {example}"
    app.command(task, context_settings=UNKNOWN, rich_help_panel=TRAIN)(command)


for _task, _words in VERBS.items():
    _add(_task, *_words)


@app.command(context_settings=UNKNOWN, rich_help_panel=TRAIN)
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

    SIGTERM, SIGUSR1 and Ctrl-C stop it with a checkpoint.
    Example: fasttrain launch --gpus 8 --max-restarts 3 -- finetune imagenet64-d2o-f
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


def _train(task: str, recipe: str, overrides: list[str], dry_run: bool) -> None:
    """Run a training of the table; its function is named as the task is, in a file of that name."""
    from fasttrain.settings.recipes import load_settings
    from fasttrain.settings.registry import load
    from fasttrain.settings.trainings import TRAININGS

    settings = load_settings(recipe, overrides, TRAININGS[task].schema, ahead=dry_run)
    if dry_run:
        _print_dry_run(settings, recipe, overrides)
        return
    train = load(f"fasttrain.training.{task}:{task}")
    with training_processes(settings) as world:
        train(settings, world)


def _print_dry_run(settings: RunSettings, recipe: str, overrides: list[str]) -> None:
    from fasttrain.settings.recipes import written
    from fasttrain.training.dry_run import dry_run

    print(dry_run(settings, written(recipe, overrides).places))
