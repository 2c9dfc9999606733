"""Verbs that show runs: report, compare, watch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fasttrain.cli import completing
from fasttrain.cli.options import LOOK, AsJson, RunPath, TrustUrls, app
from fasttrain.system.errors import UserError

Every = Annotated[float, typer.Option(min=1, help="Seconds from one look at the run to the next.")]


@app.command(rich_help_panel=LOOK)
def report(
    run: RunPath,
    out: Annotated[Path | None, typer.Option(help="The page; RUN/report.html by default.")] = None,
    trust_urls: TrustUrls = False,
    as_json: AsJson = False,
) -> None:
    """Write RUN/report.html: pictures, curves, numbers and settings in one file.

    Example: fasttrain report runs/digits-d2o-f
    """
    from fasttrain.analysis.report.page import write_report

    page = write_report(run, trust_urls=trust_urls, out=out)
    if as_json:
        from fasttrain.analysis.report.comparison import Compared, facts_of

        facts = facts_of([Compared.open(run, run.name)])
        (about,) = facts["runs"]
        print(json.dumps({"report": str(page), **about, "metrics": facts["metrics"]}, indent=1))
        return
    print(f"report: {page}")


@app.command(rich_help_panel=LOOK)
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="2 to 8 runs.", autocompletion=completing.runs),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The page to write. [default: compare.html]")
    ] = None,
    trust_urls: TrustUrls = False,
    as_json: AsJson = False,
) -> None:
    """Write a page of runs side by side: same seeds, curves, metrics, settings that differ.

    Example: fasttrain compare runs/digits-edm runs/digits-d2o-f
    """
    from fasttrain.analysis.report.comparison import facts_of, open_all, write_comparison

    opened = open_all(runs)
    page = None
    if out is not None or not as_json:
        page = write_comparison(opened, out or Path("compare.html"), trust_urls=trust_urls)
    print(json.dumps(facts_of(opened), indent=1) if as_json else f"comparison: {page}")


@app.command(rich_help_panel=LOOK)
def watch(
    run: RunPath,
    out: Annotated[
        Path | None, typer.Option(help="Write this page until the run ends, instead of serving.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Of 127.0.0.1; a free one by default.")
    ] = None,
    every: Every = 10,
) -> None:
    """Show a run while it trains, on a page that reloads itself; Ctrl-C ends it.

    Example: fasttrain watch runs/digits-edm
    """
    from fasttrain.analysis.report.live import follow, serve

    if out is not None:
        if port is not None:
            raise UserError("--out writes a file, and --port serves: take one of them")
        print(f"page: {out}, every {every:g} s while the run goes on", flush=True)
        follow(run, out, every)
        print("nobody trains the run any more: the page is its last state")
        return
    with serve(run, port or 0, every) as server:
        print(f"http://127.0.0.1:{server.server_port}/ (Ctrl-C ends it)", flush=True)
        server.serve_forever()
