"""The `fasttrain` command: a function for each verb, each a few lines.

A launcher runs the same with `--module fasttrain` (deepspeed) or `-m fasttrain` (torchrun). A
mistake of the user's ends in one clear line and exit status 2, without a traceback.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from fasttrain.errors import Stopped, Unavailable, UserError, is_machine_fault
from fasttrain_data import DataError

if TYPE_CHECKING:
    from fasttrain.distributed import World
    from fasttrain.settings import RunSettings

__all__ = ["STOPPED", "TRY_AGAIN", "app", "main"]

MISTAKE, TRY_AGAIN, STOPPED = 2, 75, 85
"""Exit statuses. After the last two the same command goes on: a machine, disk, network or another
process has failed; stopped on request, with a checkpoint. Ctrl-C is 130."""

app = typer.Typer(
    name="fasttrain",
    help="Turn a diffusion model into a one-step generator (D2O, D2O-F).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Recipe = Annotated[str, typer.Argument(help="A recipe's name, or the path of a YAML file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Settings on top of the recipe's: a.b=value ...")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved settings and the audit, and stop.")
]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
ModelPath = Annotated[
    Path, typer.Argument(metavar="MODEL", help="A run directory, or a file of a model.")
]
Churn = Annotated[
    str | None,
    typer.Option(
        metavar="S[,MIN,MAX,NOISE]",
        help="Noise that Heun steps add: EDM's S_churn, S_min, S_max, S_noise.",
    ),
]
Which = Annotated[
    str,
    typer.Option(
        "--checkpoint", help="`latest`, `best` (by evaluate.metric) or a number of images."
    ),
]
ExtractorName = Annotated[
    str | None, typer.Option(metavar="NAME", help="`lite2` (the default) or `inception`.")
]
WeightsPath = Annotated[
    Path | None, typer.Option(help="Inception's file; else the folder FASTTRAIN_WEIGHTS names.")
]
Resolution = Annotated[
    int | None, typer.Option(min=8, help="Make real images this size first: a centred square.")
]
TrustUrls = Annotated[
    bool, typer.Option("--trust-urls", help="Open the URL of the data that RUN names.")
]
Batch = Annotated[int, typer.Option(min=1, help="Images at once.")]
LocalRank = Annotated[
    int | None, typer.Option("--local_rank", "--local-rank", hidden=True, help="Ignored.")
]


@app.callback()
def root(
    context: typer.Context,
    kernels: Annotated[
        str | None,
        typer.Option(
            metavar="IMPL",
            help="Where a run does not say otherwise: triton, or reference, plain PyTorch.",
        ),
    ] = None,
    local_rank: LocalRank = None,  # launchers put it before the verb; the environment says the same
) -> None:
    """Turn a diffusion model into a one-step generator (D2O, D2O-F)."""
    if kernels is not None:
        from fasttrain_kernels import using

        try:
            context.with_resource(using(kernels))  # type: ignore[arg-type]
        except ValueError as error:
            raise UserError(f"--kernels: {error}") from None


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where everything is written.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of every random draw.")] = 0,
) -> None:
    """The whole story on real handwritten digits, in minutes on a laptop CPU."""
    from fasttrain.demo import run_demo

    run_demo(out, seed)


@app.command()
def pretrain(
    recipe: Recipe,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    local_rank: LocalRank = None,
) -> None:
    """Train a diffusion model. The same command resumes the run.

    Example: fasttrain pretrain digits-edm images=60000
    """
    from fasttrain.config import load_settings
    from fasttrain.settings import PretrainSettings

    settings = load_settings(recipe, overrides or [], PretrainSettings)
    if dry_run:
        _print_dry_run(settings)
        return
    from fasttrain.pretrain import pretrain as train

    with _processes(settings) as world:
        train(settings, world)


@app.command()
def finetune(
    recipe: Recipe,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    local_rank: LocalRank = None,
) -> None:
    """Turn a diffusion model into a one-step generator. The same command resumes the run.

    Example: fasttrain finetune digits-d2o-f images=3000 r1.gamma=0.1
    """
    from fasttrain.config import load_settings
    from fasttrain.settings import FinetuneSettings

    settings = load_settings(recipe, overrides or [], FinetuneSettings)
    if dry_run:
        _print_dry_run(settings)
        return
    from fasttrain.finetune import finetune as train

    with _processes(settings) as world:
        train(settings, world)


@app.command(context_settings={"ignore_unknown_options": True})
def launch(
    command: Annotated[
        list[str], typer.Argument(metavar="-- finetune RECIPE ...", help="What to run.")
    ],
    hostfile: Annotated[
        Path | None, typer.Option(help="Hosts, as for `deepspeed`; without, this machine.")
    ] = None,
    nodes: Annotated[int | None, typer.Option(min=1, help="The first so many hosts.")] = None,
    gpus: Annotated[int | None, typer.Option(min=1, help="Processes a host.")] = None,
    master_addr: Annotated[str | None, typer.Option(help="Address of the first host.")] = None,
    master_port: Annotated[int | None, typer.Option(help="A free port there.")] = None,
    max_restarts: Annotated[
        int,
        typer.Option(
            min=0, help="Starts after a job broke, as long as no newer checkpoint was written."
        ),
    ] = 0,
    min_gpus: Annotated[
        int | None,
        typer.Option(min=1, help="Go on without hosts that do not answer, with so many at least."),
    ] = None,
    pause: Annotated[float, typer.Option(min=0, hidden=True, help="Seconds to a restart.")] = 10,
) -> None:
    """Train in a process for each GPU, on one or many hosts, and see it through.

    SIGTERM, SIGUSR1 and Ctrl-C stop it with a checkpoint. Example:
    fasttrain launch --gpus 8 --max-restarts 3 -- finetune imagenet64-d2o-f
    """
    from fasttrain.launch import Hosts
    from fasttrain.launch import launch as start

    hosts = Hosts(
        hostfile=hostfile,
        nodes=nodes,
        gpus=gpus,
        master_addr=master_addr,
        master_port=master_port,
        min_gpus=min_gpus,
    )
    raise typer.Exit(start(command, hosts, max_restarts=max_restarts, pause=pause))


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
    """Turn a published checkpoint into weights that say what they are, running nothing in it.

    Example: fasttrain import edm-imagenet-64x64-cond-adm.pkl
    """
    from fasttrain.config import load_settings
    from fasttrain.importing import import_model
    from fasttrain.settings import FinetuneSettings

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
        str | None, typer.Option(help="Of the base model's weights, for the model card.")
    ] = None,
    checkpoint: Which = "latest",
) -> None:
    """Write the averaged network's full weights, merged with the base model, with a model card.

    A diffusers folder and an ONNX file make images in one step, without fasttrain.
    """
    from fasttrain.evaluation.result import card_numbers
    from fasttrain.export import FORMATS, export_model
    from fasttrain.models import open_model
    from fasttrain.saved import SavedRun

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
        str | None, typer.Option("--class", help="One class; all in turn when not given.")
    ] = None,
    grid: Annotated[
        str | None, typer.Option(metavar="classes", help="A row a class, of the same seeds (0-7).")
    ] = None,
    interpolate: Annotated[
        str | None, typer.Option(metavar="A,B", help="A strip from one seed to the other.")
    ] = None,
    steps_between: Annotated[int, typer.Option(min=0, help="Images between its ends.")] = 8,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 256,
    checkpoint: Which = "latest",
) -> None:
    """Draw images of the given seeds. A seed gives the same image, but for rounding, in any batch.

    Example: fasttrain sample runs/digits-d2o-f --grid classes --seeds 0-9 --out classes.png
    """
    from fasttrain.samples import Wanted, sample_model

    if grid not in (None, "classes"):
        raise UserError(f"--grid {grid}: it can be `classes`")
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


@app.command()
def evaluate(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A run directory, or a file of a model.")
    ],
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
        typer.Option(min=2, help="Images to generate; as many as REF has, 50,000 at most."),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Instead of --samples: 50000-99999.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Heun steps of a diffusion model, 18 by default.")
    ] = None,
    churn: Churn = None,
    metrics: Annotated[
        str | None, typer.Option(help="Of fd, fd_full, kd, precision, recall, is; all by default.")
    ] = None,
    resolution: Resolution = None,
    weights: WeightsPath = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images at once.")] = None,
    save_images: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the images there, too.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The result's file; in RUN by default.")] = None,
    checkpoint: Which = "latest",
    trust_urls: TrustUrls = False,
    local_rank: LocalRank = None,
) -> None:
    """How far a model's images are from real ones, by a protocol that is printed with the numbers.

    MODEL alone, a run: beside the diffusion model and real images. Several processes share the
    work: torchrun --nproc-per-node 8 -m fasttrain evaluate RUN --extractor inception
    """
    from fasttrain.evaluation.result import text

    options = (data, extractor, samples, seeds, steps, churn, metrics, resolution, weights)
    given = any(option is not None for option in (*options, save_images, out))
    if model.is_dir() and not given:
        from fasttrain.evaluation.summary import evaluate_run

        with _alone_or_together() as world:
            result = evaluate_run(model, checkpoint, world, batch, trust_urls=trust_urls)
            if world.is_main:
                print(text(result))
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
        metrics=tuple(name.strip() for name in metrics.split(",")) if metrics else None,
        resolution=resolution,
        batch=batch or 64,
        checkpoint=checkpoint,
        save_images=save_images,
        trust_urls=trust_urls,
        out=out,
    )
    with _alone_or_together() as world:
        result = evaluate_model(model, request, world)
        if world.is_main:
            print(text(result))


@app.command(name="reference-stats")
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
    """Mean and covariance of real images' features, once, for `evaluate --data FILE.npz`.

    EDM's tools read the file, too, when the extractor is inception.
    """
    from fasttrain.evaluation.measure import reference_stats as write
    from fasttrain.evaluation.request import Request

    request = Request(
        extractor=extractor or "lite2", weights=weights, resolution=resolution, batch=batch
    )
    with _alone_or_together() as world:
        about = write(data, out, request, world)["reference"]
        if world.is_main:
            print(f"statistics of {about['images']:,} images: {out}")


@app.command()
def report(run: RunPath, trust_urls: TrustUrls = False) -> None:
    """Write RUN/report.html: pictures, curves, numbers and settings in one file."""
    from fasttrain.report import write_report

    print(f"report: {write_report(run, trust_urls=trust_urls)}")


@app.command(name="class-features")
def class_features(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A folder of shards.")],
    resolution: Annotated[
        int, typer.Option(help="Of the recipe's lite0 backbone: images are resized to it.")
    ] = 224,
) -> None:
    """Store the mean features of each class beside the data, where class embeddings start.

    Fine-tuning without it looks at a few hundred images a class.
    """
    import torch

    from fasttrain.class_features import store_class_features

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"class features: {store_class_features(data, resolution, device)}")


@app.command()
def profile(
    recipe: Recipe,
    overrides: Overrides = None,
    device: Annotated[
        str | None, typer.Option(help="`cuda`, `cuda:1` or `cpu`; the GPU if there is one.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Images an iteration.")] = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="Repetitions.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of profile.json and trace.json.")] = None,
    compiled: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile", help="The torch.compile column; on a GPU by default."
        ),
    ] = None,
) -> None:
    """Where the time of a fine-tuning iteration goes, beside other implementations.

    Needs no data and no base model. Example: fasttrain profile imagenet64-d2o-f --device cpu
    """
    from fasttrain.profiling import profile_recipe

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


@app.command()
def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of each node.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    profile: Annotated[
        Path | None, typer.Option(help="A profile.json of `fasttrain profile`, for the time.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--json", help="Write it as JSON, too.")] = None,
) -> None:
    """What a fine-tuning recipe needs on so many GPUs: memory, traffic, time, disk.

    Needs no GPU, no data and no weights. Example: fasttrain plan imagenet64-d2o-f --gpus 8
    """
    os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels' shapes, without a GPU
    from fasttrain.checkpoint import write_atomic
    from fasttrain.config import load_settings
    from fasttrain.planning import make_plan
    from fasttrain.settings import FinetuneSettings

    settings = load_settings(recipe, overrides or [], FinetuneSettings)
    found = make_plan(settings, gpus=gpus, nodes=nodes, profile=profile)
    print(found.table())
    if out is not None:
        write_atomic(out, json.dumps(found.to_dict(), indent=1))


@app.command()
def doctor() -> None:
    """What this machine has: versions, devices, triton, deepspeed, weights, write access."""
    from fasttrain.doctor import examine

    healthy = examine()
    if not healthy:
        raise typer.Exit(1)


def _alone_or_together() -> AbstractContextManager[World]:
    """The launched processes, or this one alone, for a command that is simply run again."""
    return _together("run the same command again", timeout_minutes=24 * 60)


def _processes(settings: RunSettings) -> AbstractContextManager[World]:
    """The launched processes of a training run."""
    return _together(
        f"the same command goes on from the last checkpoint in {settings.run}",
        timeout_minutes=settings.engine.timeout_minutes,
        force_group=settings.engine.kind == "deepspeed",
    )


@contextmanager
def _together(again: str, *, timeout_minutes: float, force_group: bool = False) -> Iterator[World]:
    """Join the launched processes. When another one is gone, or does not come, this one ends at
    once: what is left of the group could wait for it for long."""
    from fasttrain import distributed

    def lost(reason: str) -> NoReturn:
        rank = os.environ.get("RANK", "0")
        print(
            f"fasttrain: error: rank {rank} has lost contact with another process; {again} "
            f"({reason[:200]})",
            file=sys.stderr,
            flush=True,
        )
        os._exit(TRY_AGAIN)

    try:
        yield distributed.start(
            force_group=force_group,
            timeout_minutes=timeout_minutes,
            overdue=lambda: lost(f"no connection within {timeout_minutes:g} minutes"),
        )
    except Exception as error:
        if not distributed.lost_contact(error):
            raise
        lost(str(error).partition("\n")[0])
    finally:
        distributed.stop()


def _print_dry_run(settings: RunSettings) -> None:
    from fasttrain.dry_run import dry_run

    print(dry_run(settings))


def main() -> None:
    """Run the command line; mistakes of the user's exit with status 2."""
    warnings.formatwarning = lambda message, *_, **__: f"fasttrain: warning: {message}\n"
    try:
        app()
    except Stopped as stopped:
        print(f"fasttrain: {stopped}", file=sys.stderr)
        sys.exit(STOPPED)
    except Unavailable as error:
        _fail(str(error), TRY_AGAIN)
    except (UserError, DataError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os._exit(0)  # the reader of our output has gone
    except OSError as error:
        if error.errno is None:
            raise
        why = f"{error.strerror}: {error.filename}" if error.filename else str(error.strerror)
        if is_machine_fault(error):
            _fail(f"{why}; run the same command again", TRY_AGAIN)
        _fail(why)
    except MemoryError as error:
        _fail(f"not enough memory ({error}); run the same command again", TRY_AGAIN)
    except RuntimeError as error:
        if "DefaultCPUAllocator" not in str(error):  # torch's MemoryError, but for its type
            raise
        _fail(f"not enough memory ({str(error).splitlines()[0]})", TRY_AGAIN)


def _fail(message: str, status: int = MISTAKE) -> NoReturn:
    for line in message.splitlines():
        print(f"fasttrain: error: {line}", file=sys.stderr)
    sys.exit(status)
