"""`fasttrain watch RUN`: a page of a run that reloads itself while the run goes on.

    serve(Path("runs/photos-d2o-f"), every=10)            # on this machine's loopback address alone
    follow(Path("runs/photos-d2o-f"), Path("page.html"))  # a file, until the run ends

It is made of what training has written, statistics and grids of fixed seeds, and of no checkpoint:
it costs the training nothing, and is there before the first checkpoint. The page has no scripts; a
`refresh` in its head makes the browser load it again.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fasttrain.analysis.report.charts import charts_of
from fasttrain.analysis.report.files import evaluation_of
from fasttrain.analysis.report.grids import newest_grid, progress
from fasttrain.analysis.report.template import duration, number, template
from fasttrain.checkpoints.listing import Listed, listed
from fasttrain.checkpoints.stats import TIMES, read_stats
from fasttrain.settings.of_run import load_run_settings
from fasttrain.settings.trainings import training_of
from fasttrain.system.errors import UserError
from fasttrain.system.files import probe, write_atomic

__all__ = ["follow", "live_page", "serve"]

RECENT = 20
"""Lines of the statistics that the pace is measured over."""
SLOWER = 6
"""A run that nobody trains is looked at this many times more rarely: it may be resumed."""


@dataclass(frozen=True)
class Pace:
    """Images a second lately, and seconds that are left at that rate; None before it is known."""

    rate: float | None
    left: float | None

    @classmethod
    def of(cls, stats: list[dict[str, Any]], images: int, of: int) -> Pace:
        lines = [line for line in stats if "seconds" in line][-RECENT:]
        start = lines[0] if len(lines) > 1 else {"images": 0, "seconds": 0.0}
        if not lines or lines[-1]["seconds"] <= start["seconds"]:
            return cls(None, None)
        done = lines[-1]["images"] - start["images"]
        rate = done / (lines[-1]["seconds"] - start["seconds"])
        return cls(rate, max(of - images, 0) / rate if rate > 0 else None)


def live_page(run: Path, refresh: float | None) -> str:
    """HTML of a run as it stands.

    refresh: seconds after which a browser loads it again; None: never.

    Raises UserError when the folder is not a run directory.
    """
    settings = load_run_settings(run)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a line that is being written
        stats = read_stats(run)
    state = listed(run, run.parent)
    evaluation, _ = evaluation_of(run, state.images)
    return template("live.html.j2").render(
        name=run.resolve().name,
        refresh=None if refresh is None else max(round(refresh), 1),
        task=training_of(settings).task,
        state=state,
        share=round(min(100 * state.images / state.of, 100), 1) if state.of else 0,
        facts=_facts(state, stats),
        last=_last(stats),
        newest=newest_grid(run),
        strip=progress(run),
        charts=charts_of(stats, evaluation, settings),
        now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
    )


def _facts(state: Listed, stats: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """The small numbers under the headline: (name, value, remark)."""
    pace = Pace.of(stats, state.images, state.of)
    facts = [("images seen", f"{state.images:,}", f"of {state.of:,}")]
    if state.process and pace.left is not None:
        facts.append(("time left", duration(pace.left), "at this rate"))
    if pace.rate is not None:
        facts.append(("images/s", number(pace.rate), f"over {RECENT} reports at most"))
    if stats and "seconds" in stats[-1]:
        facts.append(("training time", duration(stats[-1]["seconds"]), ""))
    if state.value is not None:
        facts.append((state.metric, number(state.value), "last evaluation in the loop"))
    return facts


def _last(stats: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """The values of the newest report."""
    newest = stats[-1] if stats else {}
    return [(name, f"{value:.4g}") for name, value in newest.items()
            if name not in TIMES and name != "images"]  # fmt: skip


def follow(
    run: Path, out: Path, every: float = 10, rest: Callable[[float], None] = time.sleep
) -> Path:
    """Write the page again and again as long as the run is trained, and once more at its end.

    Raises UserError when the folder is not a run directory or the file cannot be written.
    """
    probe(out)
    while listed(run, run.parent).process is not None:
        write_atomic(out, live_page(run, every))
        rest(every)
    write_atomic(out, live_page(run, None))
    return out


def serve(run: Path, port: int = 0, every: float = 10) -> ThreadingHTTPServer:
    """A server of the page at 127.0.0.1, not started yet; port 0: a free one.

    Raises UserError when the folder is not a run directory or the port is in use.
    """
    load_run_settings(run)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """The page at /, for whoever calls this machine by a name of its own: a page of another
            site cannot read it by a name that leads here."""
            host = (self.headers.get("Host") or "").rpartition(":")[0]
            if host not in ("127.0.0.1", "localhost"):
                self.send_error(421)
                return
            if self.path != "/":
                self.send_error(404)
                return
            try:
                slowly = every if listed(run, run.parent).process else every * SLOWER
                body = live_page(run, slowly).encode()
            except (UserError, OSError) as error:  # the run may be moved meanwhile
                self.send_error(503, explain=str(error))
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing: a line for each reload tells nobody anything."""

    try:
        return ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except (OSError, OverflowError) as error:
        raise UserError(f"--port {port}: {getattr(error, 'strerror', None) or error}") from None
