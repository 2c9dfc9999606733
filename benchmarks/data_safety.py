"""Hostile data through the command that a user would run: nothing runs, nothing is written
elsewhere, memory stays within bounds, and one line says what is wrong.

    python -m benchmarks.data_safety                    # benchmarks/results/data-safety.json, then
                                                        # python -m benchmarks.page
    python -m benchmarks.data_safety --only parquet     # some of them, on the terminal

The cases are in `tests/hostile`. What a run measures stands apart in the result, for it is
another on each machine; `tests/benchmarks/test_data_safety.py` runs the cases again and compares
the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["hostile_part", "limits", "limits_part", "main", "others_part"]

RESULTS = Path(__file__).parent / "results" / "data-safety.json"
SHOWN = 120
"""Characters of a message that the table shows."""


def run(only: str, say: bool) -> dict[str, Any]:
    """Every case; the rows that any machine has, and what was measured on this one."""
    from tests.hostile import archives, arrays, folders, foreign, pictures, sets  # noqa: F401
    from tests.hostile.cases import CASES, GROUPS
    from tests.hostile.judge import Judge
    from tests.hostile.others import compare

    rows, measured, problems = [], {}, {}
    with tempfile.TemporaryDirectory() as base:
        judge = Judge(Path(base))
        for case in sorted(CASES, key=lambda case: GROUPS.index(case.group)):
            name = f"{case.group}: {case.what}"
            if only not in name:
                continue
            began = time.monotonic()
            found = judge(case)
            rows.append(
                {
                    "group": case.group,
                    "what": case.what,
                    "status": found.status,
                    "line": found.line,
                    "allowed_megabytes": case.megabytes,
                }
            )
            measured[name] = {
                "bytes": found.bytes,
                "megabytes": round(found.megabytes, 1),
                "seconds": round(found.seconds, 2),
            }
            problems[name] = found.problems
            if say:
                mark = "FAILED" if found.problems else "ok"
                print(
                    f"{mark:7}{time.monotonic() - began:5.1f} s  {name}: {found.line}", flush=True
                )
                print(*(f"       {each}\n" for each in found.problems), sep="", end="")
        others = [] if only else compare(Path(base) / "others")
    memory = [row.pop("megabytes") for row in others]
    return {
        "rows": rows,
        "others": others,
        "measured": measured,
        "measured_others": memory,
        "problems": {name: each for name, each in problems.items() if each},
    }


def limits() -> dict[str, str]:
    """What the readers allow, from the code."""
    from fasttrain_data import images, index, reader, records, tables, tar, tiff_tags
    from fasttrain_data.sources import (
        arrays,
        batches,
        emoji,
        label_tables,
        matlab,
        parquet,
        pickled,
    )

    def size(count: int) -> str:
        power = next(power for power in (30, 20, 10, 0) if count >= 1 << power)
        return f"{count >> power:,} {({30: 'GiB', 20: 'MiB', 10: 'KiB', 0: 'bytes'})[power]}"

    return {
        "pixels of a picture, also on the way to the size wanted": f"{images.MAX_PIXELS:,}",
        "pixels of a JPEG that is decoded at half its size": f"{images.MAX_JPEG_PIXELS:,}",
        "lines of a file of labels, characters of one": (
            f"{label_tables.MAX_LINES:,}, {label_tables.MAX_LINE:,}"
        ),
        "memory of the process that reads a `.mat` file": size(matlab.MAX_MEMORY),
        "a picture's file in a folder": size(images.MAX_FILE_BYTES),
        "a picture in an archive or a table": size(tar.MAX_MEMBER_BYTES),
        "scans of a progressive JPEG": f"{images.MAX_SCANS}",
        "tags of a TIFF's page that its pixels need": size(tiff_tags.MAX_TAG_BYTES),
        "a record's image in a shard": size(records.MAX_RECORD_BYTES),
        "a record's labels, one or a chunk's": " or ".join(map(size, reader._CAPS.values())),
        "an extended or long-name header of a tar": size(tar._MAX_AHEAD),
        "`index.json`": f"{size(index.MAX_INDEX_BYTES)}, {index.MAX_INDEX_VALUES:,} values",
        "`dataset.json`, `emoji.json`": f"{size(tables.MAX_JSON_BYTES)}, "
        f"{tables.MAX_JSON_VALUES:,} values",
        "a class name": f"1 to {index.MAX_CLASS_NAME:,} printable characters",
        "an array of an IDX file": size(arrays.MAX_ARRAY_BYTES),
        "a batch of CIFAR": f"{size(batches.MAX_BATCH_BYTES)}, "
        f"{pickled.MAX_PICKLE_STEPS:,} steps of its pickle",
        "CIFAR's archive, unpacked to a temporary file": size(batches.MAX_ARCHIVE_BYTES),
        "an emoji package, unpacked to a temporary file": size(emoji.MAX_PACKAGE_BYTES),
        "images of parquet tables, copied to a temporary file": (
            f"{size(parquet.MAX_UNPACKED_BYTES)} and {parquet.MOST_UNPACKED} times the tables"
        ),
        "memory of the process that reads parquet tables": size(parquet.MAX_TABLE_MEMORY),
        "rows of a parquet table": f"one for each {parquet.MIN_ROW_BYTES} bytes",
    }


def limits_part(result: Mapping[str, Any]) -> str:
    """A limit a line."""
    lines = ["| at most | |", "|---|---|"]
    return "\n".join([*lines, *(f"| {what} | {most} |" for what, most in result["limits"].items())])


def hostile_part(result: Mapping[str, Any]) -> str:
    """A case a line."""
    rows, measured = result["rows"], result["measured"]
    most = max(rows, key=lambda row: row["allowed_megabytes"])
    usual = sum(row["allowed_megabytes"] <= 128 for row in rows)
    lines = [
        f"{len(rows)} cases, {_machine(result)}, from `benchmarks/results/data-safety.json`. "
        "Nothing ran, nothing was opened to write outside the output folder and the one for "
        "temporary files, no connection was made. Memory "
        "is the most that the process held on top of what the same command takes for a sound file; "
        f"{usual} cases were allowed 128 MB, the rest up to {most['allowed_megabytes']:,}. The "
        "line is the first that the command prints.",
        "",
        "| | case | bytes | what `fasttrain-data` says | status | MB | s |",
        "|---|---|---|---|---|---|---|",
    ]
    group = None
    for row in rows:
        found = measured[f"{row['group']}: {row['what']}"]
        cells = [
            "" if row["group"] == group else row["group"],
            row["what"],
            f"{found['bytes']:,}",
            _code(row["line"]),
            row["status"],
            f"{found['megabytes']:.0f}",
            f"{found['seconds']:.1f}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
        group = row["group"]
    return "\n".join(lines)


def others_part(result: Mapping[str, Any]) -> str:
    """What other readers do with a few of them."""
    about = result["machine"]
    lines = [
        f"webdataset {about['webdataset']}, Python {about['python']}:",
        "",
        "| | reader | what happened | MB |",
        "|---|---|---|---|",
    ]
    for row, megabytes in zip(result["others"], result["measured_others"], strict=True):
        lines.append(f"| {row['what']} | {row['reader']} | {row['outcome']} | {megabytes:,} |")
    return "\n".join(lines)


def _code(line: str) -> str:
    """A line as it was printed, cut to what a table holds."""
    line = line if len(line) <= SHOWN else f"{line[:SHOWN]}..."
    fence = "``" if "`" in line else "`"
    line = line.replace("|", "\\|")
    return f"{fence} {line} {fence}" if fence == "``" else f"{fence}{line}{fence}"


def _machine(result: Mapping[str, Any]) -> str:
    about = result["machine"]
    names = ("python", "pillow", "numpy", "pyarrow")
    return f"{about['cpu']}, " + ", ".join(f"{name} {about[name]}" for name in names)


def machine() -> dict[str, Any]:
    """What the cases were run on."""
    from importlib.metadata import version

    cpu = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    packages = ("pillow", "numpy", "pyarrow", "webdataset")
    return {
        "cpu": cpu[0] if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--out", type=Path, help="write the result there, problems and all")
    arguments = parser.parse_args()
    result = {
        "machine": machine(),
        "limits": limits(),
        **run(arguments.only, say=not arguments.out),
    }
    problems = result["problems"]
    out = arguments.out or RESULTS
    if arguments.out or not (problems or arguments.only):
        out.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
