"""The verb that shows a model in a browser."""

from __future__ import annotations

import os
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fasttrain.cli.options import USE, ModelPath, Which, app
from fasttrain.system.errors import UserError
from fasttrain_data.errors import DataError

if TYPE_CHECKING:
    from fasttrain.sampling.playground.nearest import TrainingImages
    from fasttrain.sampling.playground.page import Page


@app.command(rich_help_panel=USE)
def playground(
    model: ModelPath,
    export: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write DIR/index.html for any web host; serve nothing."),
    ] = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Of 127.0.0.1; default: a free one.")
    ] = 0,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the page's address, and open nothing.")
    ] = False,
    teacher: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL",
            help="The diffusion model beside it; default: the one that it was fine-tuned from.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SHARDS", help="Training images, for the nearest one; the run's by default."
        ),
    ] = None,
    checkpoint: Which = "latest",
) -> None:
    """Show a one-step generator in the browser, which runs it itself: one page on 127.0.0.1.

    Example: fasttrain playground fashion-mnist
    """
    from fasttrain.sampling.playground import build_page, export_page, open_server

    if export is not None and (data is not None or no_browser or port):
        raise UserError("--export writes files and serves nothing: leave --port, --data and "
                        "--no-browser out")  # fmt: skip
    if export is None and not no_browser:
        _check_browser()
    page = build_page(model, which=checkpoint, teacher=teacher)
    for note in page.notes:
        print(note)
    if export is not None:
        path = export_page(page, export)
        size = path.stat().st_size / 1e6
        print(f"page: {path} ({size:.1f} MB), for any web host, or to open as it is")
        return
    with open_server(page, port, _training_images(page, data)) as server:
        print(f"playground: {server.address} (Ctrl-C stops it)", flush=True)
        if not no_browser:
            webbrowser.open(server.address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("stopped")


def _check_browser() -> None:
    """Raise UserError where no browser can be opened."""
    screen = sys.platform != "linux" or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    )
    try:
        webbrowser.get()
    except webbrowser.Error:
        screen = False
    if not screen:
        raise UserError(
            "no browser can be opened here: add --no-browser and open the address that is "
            "printed, or write the page with --export DIR"
        )


def _training_images(page: Page, named: str | None) -> TrainingImages | None:
    """The images to look among; a note where the run's are not at hand."""
    from fasttrain.sampling.playground.nearest import TrainingImages
    from fasttrain.settings import DataSettings

    if named is not None:
        return TrainingImages(DataSettings(path=named), page.info.network, trust_urls=True)
    if page.data is None:
        print("without the nearest training image: name the data with --data SHARDS")
        return None
    try:
        return TrainingImages(page.data, page.info.network)
    except (UserError, DataError, OSError) as error:
        print(f"without the nearest training image: {error}")
        return None
