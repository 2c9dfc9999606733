"""The result of an evaluation: one format for a run's table and for a model, in files and as text.

{"rows": {"one_step_after": {"title", "sampler", "weights", "metrics": {"fd": {"value", "low",
          "high", "why"}}}, ...},
 "protocol": {...},                     # what the metrics depend on besides the model
 "model": {"name", "images_seen", "seeds", "classes", "vae"},    # vae: of a model of latents
 "made": {"fasttrain", "torch", "device", "processes", "batch", "seconds"},
 "note": "..."}                         # in a run's: what its extractor shares with its training

result = read_result(Path("runs/digits-d2o-f/evaluation.json"))     # also of earlier versions
values_of(result, "fd")                # {"one_step_after": 24.5, ...}
print(text(result))                    # the metrics always with their protocol
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fasttrain import __version__
from fasttrain.checkpoints.stats import is_number
from fasttrain.evaluation.comparison import Comparison
from fasttrain.evaluation.metrics.resampling import Estimate
from fasttrain.evaluation.protocol import METRICS, UNREADABLE, said
from fasttrain.models.files.model_file import ModelInfo
from fasttrain.system.files import read_json, write_atomic

__all__ = [
    "metrics_of_rows",
    "read_result",
    "result_of",
    "row_of",
    "text",
    "values_of",
    "write_result",
]

DIGITS = {"kd": 5}
"""Decimals of a metric in a table; 3 for the others."""


def row_of(
    estimates: Mapping[str, Estimate], title: str, sampler: str | None = None, network: Any = None
) -> dict[str, Any]:
    """A row of a result: the metrics of a network's images, or of real images without a network."""
    return {
        "title": title,
        "sampler": sampler,
        "weights": None if network is None else hash_of(network),
        "metrics": {name: asdict(estimate) for name, estimate in estimates.items()},
    }


def result_of(
    rows: Mapping[str, Any],
    comparison: Comparison,
    info: ModelInfo,
    *,
    began: float,
    seeds: str | None = None,
    network: Any,
) -> dict[str, Any]:
    """The result of a comparison that began at a time of `time.monotonic`. seeds: as the user wrote
    them, unless they are the first ones. network: one of the rows', whose decoder is all rows'."""
    world = comparison.world
    vae = {} if network.decoder is None else {"vae": network.decoder.vae.sha256[:12]}
    return {
        "rows": dict(rows),
        "protocol": comparison.protocol(),
        "model": {
            "name": info.name,
            "images_seen": info.images,
            "seeds": seeds or f"0-{len(comparison.seeds) - 1}",
            "classes": "in turn by seed" if info.network.label_dim else None,
            **vae,
        },
        "made": {
            "fasttrain": __version__,
            "torch": torch.__version__,
            "device": device_name(world.device),
            "processes": world.size,
            "batch": comparison.batch,
            "seconds": round(time.monotonic() - began, 1),
        },
    }


def hash_of(network: nn.Module) -> str:
    """The first digits of a SHA-256 over all weights, which identify the model."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def values_of(result: Mapping[str, Any], metric: str) -> dict[str, float]:
    """A metric's value in each row that has it."""
    metrics = {name: row["metrics"] for name, row in result["rows"].items()}
    return {name: found[metric]["value"] for name, found in metrics.items() if metric in found}


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """Write the result, with the other metrics of the same images that the file already holds."""
    rows = {name: dict(row) for name, row in result["rows"].items()}
    with suppress(OSError, ValueError):
        kept = read_result(path)
        if identity_of(kept) == identity_of(result):
            for name, row in rows.items():
                known = kept["rows"][name]["metrics"] | row["metrics"]
                row["metrics"] = {metric: known[metric] for metric in METRICS if metric in known}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps({**result, "rows": rows}, indent=1))


def identity_of(result: Mapping[str, Any]) -> list[Any]:
    """Values that identify a result's images and protocol."""
    model = result["model"]
    made: list[Any] = [[n, row["weights"], row["sampler"]] for n, row in result["rows"].items()]
    made += [model["seeds"], model["classes"], model.get("vae")]
    return [made, result["protocol"].get("code")]


def read_result(path: Path) -> dict[str, Any]:
    """The result in a file, in this version's format whatever version wrote it. The file may come
    from anyone: its values are checked to have the types that are printed.

    Raises OSError or ValueError when it cannot be read.
    """
    content = read_json(path)
    try:
        return _checked(content if "rows" in content else _of_earlier(content))
    except UNREADABLE as error:
        why = f"{error!r:.200}"
        raise ValueError(f"{path} is not the result of an evaluation: {why}") from None


def _checked(content: Mapping[str, Any]) -> dict[str, Any]:
    rows = {name: _row(row) for name, row in content["rows"].items()}
    model = dict.fromkeys(("name", "images_seen", "seeds", "classes")) | dict(content["model"])
    protocol, made = dict(content["protocol"]), dict(content.get("made", {}))
    said(protocol)
    seen, seconds = model["images_seen"], made.get("seconds")
    known = all(_is_text(model.get(name)) for name in ("name", "seeds", "classes", "vae"))
    counted = seen is None or (type(seen) is int and 0 <= seen < 2**63)
    timed = seconds is None or (is_number(seconds) and math.isfinite(seconds))
    note = content.get("note")
    if not (rows and known and counted and timed and _is_text(note)):
        raise ValueError("its rows, model, seconds or note have a wrong type")
    found = {"rows": rows, "protocol": protocol, "model": model, "made": made}
    return found if note is None else {**found, "note": note}


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    about = {"title": row["title"], "sampler": row.get("sampler"), "weights": row.get("weights")}
    given = {
        metric: Estimate(**row["metrics"][metric]) for metric in METRICS & row["metrics"].keys()
    }
    for found in given.values():
        interval = [end for end in (found.low, found.high) if end is not None]
        numbers = all(map(is_number, (found.value, *interval)))
        if not (numbers and len(interval) in (0, 2) and _is_text(found.why)):
            raise ValueError("a number has a wrong type")
    if not all(map(_is_text, about.values())):
        raise ValueError("a name has a wrong type")
    metrics = {metric: asdict(given[metric]) for metric in METRICS if metric in given}
    return {**about, "title": str(about["title"]), "metrics": metrics}


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _of_earlier(content: Mapping[str, Any]) -> dict[str, Any]:
    """The result in a file of earlier versions: a model's metrics, or each metric's rows of a
    run."""
    protocol = {**content["protocol"]}
    if "metrics" in content:
        model = dict(content["model"])
        made = {name: model.pop(name) for name in ("sampler", "weights")}
        row = {"title": made["sampler"], **made, "metrics": content["metrics"]}
        return {**content, "rows": {"model": row}, "model": model}
    model = {"images_seen": protocol.pop("images_seen", None)}
    titles = dict(zip(content["fd"], content.get("titles", content["fd"]), strict=True))
    rows = {
        name: {
            "title": title,
            "metrics": {
                m: {"value": content[m][name]} for m in METRICS if name in content.get(m, {})
            },
        }
        for name, title in titles.items()
    }
    made = {"seconds": float(content["seconds"])}
    return {"rows": rows, "protocol": protocol, "model": model, "made": made}


def text(result: Mapping[str, Any]) -> str:
    """Text for people: a table of several rows, or one row's metrics with their intervals."""
    rows, model = result["rows"], result["model"]
    seen = f"after {model['images_seen']:,} images" if model["images_seen"] else ""
    decoded = f"; decoded by autoencoder {model['vae']}" if model.get("vae") else ""
    if len(rows) == 1:
        ((_, row),) = rows.items()
        classes = f", classes {model['classes']}" if model["classes"] else ""
        lines = [
            f"{' '.join(filter(None, (model['name'], seen)))} (weights {row['weights']}): "
            f"{row['sampler']}; seeds {model['seeds']}{classes}{decoded}",
            *_intervals(row["metrics"]),
            *said(result["protocol"]),
        ]
    else:
        lines = [*_table(rows), *said(result["protocol"]), f"  model      {seen}{decoded}"]
    lines += [f"  note       {result['note']}"] if "note" in result else []
    return "\n".join(lines + ([f"saved: {result['path']}"] if "path" in result else []))


def _intervals(metrics: Mapping[str, Any]) -> list[str]:
    lines = [f"{'':46}{'':>10}   95 % interval over seeds"]
    for name, estimate in metrics.items():
        title = name if METRICS[name] == name else f"{name}: {METRICS[name]}"
        interval = f"none: {estimate.get('why') or 'too few images'}"
        if estimate["low"] is not None:
            interval = f"{estimate['low']:.5g} to {estimate['high']:.5g}"
        lines.append(f"{title:46}{estimate['value']:>10.5g}   {interval}")
    return lines


def _table(rows: Mapping[str, Any]) -> list[str]:
    metrics = metrics_of_rows(rows)
    lines = [f"{'':49}" + "".join(f"{name:>11}" for name in metrics)]
    for row in rows.values():
        values = (f"{row['metrics'][m]['value']:11.{DIGITS.get(m, 3)}f}" for m in metrics)
        lines.append(f"{row['title']:49}" + "".join(values))
    return lines


def metrics_of_rows(rows: Mapping[str, Any]) -> list[str]:
    """The metrics that all rows have."""
    return [name for name in METRICS if all(name in row["metrics"] for row in rows.values())]
