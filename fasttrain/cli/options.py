"""The command itself, and the options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from fasttrain.cli import completing
from fasttrain.settings.registry import EXTRACTORS
from fasttrain.system.errors import UserError
from fasttrain.system.talk import speak

__all__ = ["app"]


TRAIN, USE, MEASURE, LOOK, MACHINE = GROUPS = (
    "Train",
    "Use models",
    "Measure",
    "Look at runs, recipes and settings",
    "This machine",
)
"""Headings of `fasttrain --help`, in their order."""


class Grouped(typer.core.TyperGroup):
    """The verbs in the order of their groups, which is not that of the modules' imports."""

    def list_commands(self, context: Any) -> list[str]:
        def place(name: str) -> int:
            panel = getattr(self.commands[name], "rich_help_panel", "")
            return GROUPS.index(panel) if panel in GROUPS else len(GROUPS)

        return sorted(self.commands, key=place)


app = typer.Typer(
    name="fasttrain",
    cls=Grouped,
    help="Turn a diffusion model into a one-step generator (D2O, D2O-F).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

CountedGpu = Annotated[
    str, typer.Option(help="h200, h100, a100 or b200: the time without a profile, counted.")
]
ProfilePath = Annotated[
    Path | None, typer.Option(help="A profile.json of `fasttrain profile`, for the time.")
]
Price = Annotated[float | None, typer.Option(min=0, help="Of an hour of one GPU.")]
Recipe = Annotated[
    str,
    typer.Argument(
        help="A recipe's name, or the path of a YAML file.", autocompletion=completing.recipes
    ),
]

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Settings that override the recipe's: a.b=value ...",
        autocompletion=completing.settings,
    ),
]

DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print settings, what trains and what is missing, and stop."),
]

RunPath = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="A run directory.", autocompletion=completing.runs),
]

ModelPath = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        help="A run directory, a file of a model, or a name.",
        autocompletion=completing.models,
    ),
]

Which = Annotated[
    str,
    typer.Option(
        "--checkpoint", help="`latest`, `best` (by evaluate.metric) or a number of images."
    ),
]

ExtractorName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"`{'` or `'.join(EXTRACTORS)}`; default: lite2.",
        autocompletion=completing.extractors,
    ),
]

WeightsPath = Annotated[
    Path | None,
    typer.Option(help="Inception's file; default: in the folder FASTTRAIN_WEIGHTS names."),
]

Resolution = Annotated[
    int | None, typer.Option(min=8, help="Resize real images to this: a centred square.")
]

TrustUrls = Annotated[
    bool, typer.Option("--trust-urls", help="Open the URL of the data that RUN names.")
]

Churn = Annotated[
    str | None,
    typer.Option(
        metavar="S[,MIN,MAX,NOISE]",
        help="Noise that Heun steps add: EDM's S_churn, S_min, S_max, S_noise.",
    ),
]
PRECISIONS = ("float32", "bfloat16", "auto")


def _known(precision: str | None) -> str | None:
    if precision not in (None, *PRECISIONS):
        raise UserError(f"--precision {precision}: choose from {', '.join(PRECISIONS)}")
    return precision


ComputedIn = Annotated[
    str | None,
    typer.Option(
        "--precision",
        callback=_known,
        metavar="DTYPE",
        help="What the network computes in: float32 (the default), bfloat16, or auto, the faster.",
    ),
]
Vae = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="The autoencoder of a model of latents: a folder as diffusers has it, or a file of "
        "latent-diffusion's; default: the run's.",
    ),
]
Batch = Annotated[int, typer.Option(min=1, help="Images in a batch.")]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for a script.")]

LocalRank = Annotated[
    int | None, typer.Option("--local_rank", "--local-rank", hidden=True, help="Ignored.")
]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"fasttrain {version('fasttrain')}, torch {version('torch')}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="The versions, and no more."
        ),
    ] = False,
    kernels: Annotated[
        str | None,
        typer.Option(
            metavar="IMPL",
            help="Unless a run sets them: triton, or reference, plain PyTorch.",
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Only results, warnings and errors.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="All metrics, and where a mistake was noticed.")
    ] = False,
    local_rank: LocalRank = None,  # launchers put it before the verb; the environment has it too
) -> None:
    """Turn a diffusion model into a one-step generator (D2O, D2O-F)."""
    if quiet and verbose:
        raise UserError("--quiet or --verbose: take one of them")
    if quiet or verbose:
        speak("less" if quiet else "more")
    if kernels is not None:
        from fasttrain_kernels import using

        try:
            context.with_resource(using(kernels))  # type: ignore[arg-type]
        except ValueError as error:
            raise UserError(f"--kernels: {error}") from None
