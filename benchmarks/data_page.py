"""The tables of docs/data.md, from the results of `data_bench`, `data_scale` and `data_waiting`.

data_bench_part(json.loads(Path("benchmarks/results/data-bench.json").read_text()))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["data_bench_part", "data_scale_part", "data_waiting_part"]
__all__ += ["data_foreign_part", "foreign_scale_part"]

SPREADS = ("stream", "reader", "rank", "rank_all_epochs")


def data_bench_part(result: Mapping[str, Any]) -> str:
    """Images a second of a core: a reader a line, two columns a set."""
    about, sets = result["machine"], result["sets"]
    sizes = " and ".join(f"{each['images']:,} images of {each['size']}" for each in sets)
    rows = [
        [
            *(each[0][key] for key in ("reader", "storage")),
            *(f"{row['images_per_second']:,.0f} | {row['bytes'] / 1e6:.1f}" for row in each),
        ]
        for each in zip(*(of["rows"] for of in sets), strict=True)
    ]
    heads = " | ".join(f"{each['size']}, images/s | MB" for each in sets)
    return "\n\n".join(
        [
            f"{sizes}, batches of {result['batch']}, one core of {about['cpu']}; medians of "
            f"{result['repeats']} passes, from `benchmarks/results/data-bench.json`. "
            f"{result['note']}",
            _table(f"reader | stored as | {heads}", rows),
        ]
    )


def data_waiting_part(result: Mapping[str, Any]) -> str:
    """The share of a training step that goes by waiting: of real runs, and of steps that sleep."""
    about, steps = result["machine"], result["steps"]
    runs = [
        [
            row["name"],
            str(row["workers"]),
            f"{row['images_per_second']:.0f}",
            _percent(row["waiting"]),
            _percent(row["waiting_after_first_report"]),
        ]
        for row in result["runs"]
    ]
    lengths = list(steps[0]["shares"])
    asked = " | ".join(
        f"{float(step) * 1e3:.0f} ms ({result['batch'] / float(step):,.0f} images/s)"
        for step in lengths
    )
    sleeping = [
        [row["record"], str(row["workers"]), *(_pair(row["shares"][step]) for step in lengths)]
        for row in steps
    ]
    return "\n\n".join(
        [
            f"Waiting on {about['cpu']}, {about['cores']} cores, from "
            f"`benchmarks/results/data-waiting.json`. {result['note']}",
            _table("run on the CPU | workers | images/s | waiting | after the first report", runs),
            "A step that leaves the CPU alone, as one on a GPU does: it sleeps. "
            f"{result['batch']} images of 64x64 a batch, medians over batches; in brackets what of "
            "it this thread worked, on which other work on the machine has little influence:",
            _table(f"stored as | workers | {asked}", sleeping),
        ]
    )


def data_scale_part(result: Mapping[str, Any]) -> str:
    """What was made and what was read of five million images, a table each."""
    about, once, drawn = result["machine"], result["once"], result["resampled"]
    world, readers, streams = (result[key] for key in ("world", "readers", "streams"))
    epochs, (low, high) = result["epochs"], drawn["shard"]
    return "\n\n".join(
        [
            f"8x8 grey images, raw records, {about['cpu']}, {about['cores']} cores, from "
            f"`benchmarks/results/data-scale.json`. {result['note']} Memory is of all processes "
            "together, MB are 10^6 bytes.",
            _table(
                "images | shards, MB | convert, s | its memory, MB | verify, s | its memory, MB",
                [
                    [
                        f"{row['images']:,}",
                        _mb(row["shard_bytes"]),
                        f"{row['convert_seconds']:.0f}",
                        _mb(row["convert_memory"]),
                        f"{row['verify_seconds']:.0f}",
                        _mb(row["verify_memory"]),
                    ]
                    for row in result["made"]
                ],
            ),
            _table(
                "images | shards | index.json, kB | loading it, ms | dealing an epoch, ms",
                [
                    [
                        f"{row['images']:,}",
                        f"{row['shards']:,}",
                        f"{row['bytes'] / 1e3:,.0f}",
                        *(f"{row[key] * 1e3:.1f}" for key in ("load_seconds", "deal_seconds")),
                    ]
                    for row in result["index"]
                ],
            ),
            f"Least and most images, {once['images']:,} in all, {world} ranks with {readers} "
            f"readers each, over {epochs} epochs:",
            _table(
                "streams | a stream, an epoch | a reader, an epoch | a rank, an epoch | "
                f"a rank, {epochs} epochs",
                [
                    [f"{row['streams']:,}", *(_spread(row[key]) for key in SPREADS)]
                    for row in result["balance"]
                ],
            ),
            f"Read to the end, the first epoch of {streams:,} streams held {once['once']:,} of "
            f"{once['images']:,} images exactly once. With `order: resampled`, while "
            f"{epochs} epochs' worth is read, a shard is drawn {drawn['mean']:.1f} times on "
            f"average, {low} to {high} times.",
            f"One rank of {world} with {streams // world} streams and {result['batch'] // world} "
            "images a batch, files in the page cache; the resume is from the middle of an epoch:",
            _table(
                "order | workers | first batch, s | first batch after a resume, s | "
                "the one that would have come",
                [
                    [
                        row["order"],
                        str(row["workers"]),
                        *(f"{row[key]:.2f}" for key in ("start_seconds", "resume_seconds")),
                        "yes" if row["same"] else "NO",
                    ]
                    for row in result["start"]
                ],
            ),
            _table(
                "order | workers | images read | its memory after each eighth, MB",
                [
                    [
                        row["order"],
                        str(row["workers"]),
                        f"{row['images']:,}",
                        " ".join(map(_mb, row["at"])),
                    ]
                    for row in result["memory"]
                ],
            ),
        ]
    )


def _spread(found: Sequence[int]) -> str:
    low, high = found
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _mb(count: float) -> str:
    return f"{count / 1e6:,.0f}"


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _pair(shares: Sequence[float]) -> str:
    waited, worked = map(_percent, shares)
    return f"{waited} ({worked})"


def _table(heads: str, rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, " | ".join("---" for _ in heads.split(" | ")), *map(" | ".join, rows)]
    return "\n".join(f"| {line} |" for line in lines)


def data_foreign_part(result: Mapping[str, Any]) -> str:
    """Images a second of a core from tars of others: a reader a line, a column a set."""
    about, sets = result["machine"], result["sets"]
    rows = [
        [
            *(each[0][key] for key in ("reader", "storage")),
            *(f"{row['images_per_second']:,.0f}" for row in each),
        ]
        for each in zip(*(of["rows"] for of in sets), strict=True)
    ]
    index = ["`fasttrain-data index`, once", "tars of others"]
    rows.append([*index, *(f"{of['index_images_per_second']:,.0f}" for of in sets)])
    heads = " | ".join(
        f"{each['title']} ({each['bytes'] / each['images'] / 1e3:.0f} KB)" for each in sets
    )
    side = result["resolution"]
    return "\n\n".join(
        [
            f"Images a second of one core of {about['cpu']}, cropped and resized to {side}x{side}, "
            f"batches of {result['batch']}; medians of {result['repeats']} passes, from "
            f"`benchmarks/results/data-foreign.json`. {result['note']}",
            _table(f"reader | stored as | {heads}", rows),
        ]
    )


def foreign_scale_part(result: Mapping[str, Any]) -> str:
    """What indexes of tars took, and what that makes for five million images."""
    rows = result["foreign"]["rows"]
    last, most = rows[-1], 5_000_000
    times = most / last["images"]
    table = [
        [
            f"{row['images']:,}",
            f"{row['tars']:,}",
            _mb(row["tar_bytes"]),
            f"{row['seconds']:.0f}",
            _mb(row["memory"]),
            _mb(row["index_bytes"] * 1000),
            _mb(row["records_bytes"]),
            f"{row['first_batch_seconds']:.2f}",
        ]
        for row in rows
    ]
    slope = (last["memory"] - rows[0]["memory"]) / (last["images"] - rows[0]["images"])
    table.append(
        [
            "5,000,000, by these",
            f"{last['tars'] * times:,.0f}",
            _mb(last["tar_bytes"] * times),
            f"{last['seconds'] * times:.0f}",
            _mb(last["memory"] + max(0.0, slope) * (most - last["images"])),
            _mb(last["index_bytes"] * times * 1000),
            _mb(last["records_bytes"] * times),
            "",
        ]
    )
    heads = (
        "images | tars | their MB | index, s | its memory, MB | index.json, kB | records.bin, MB"
    )
    about = result["foreign"]["machine"]
    return "\n\n".join(
        [
            f"One process on {about['cpu']}, beside other work, of which the times depend; from "
            "`foreign` in `benchmarks/results/data-scale.json`. The last line is worked out from "
            "the one before it:",
            _table(f"{heads} | to the first batch, s", table),
        ]
    )
