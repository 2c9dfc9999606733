"""Run the fault matrix of tests/faults and keep its rows, if all of them hold.

python -m benchmarks.reliability      # benchmarks/results/faults.json, then benchmarks.page
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.demo import machine

RESULTS = Path(__file__).parent / "results" / "faults.json"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "faults.json"
        command = [sys.executable, "-m", "tests.faults", "--out", str(out)]
        status = subprocess.run(command, check=False).returncode
        if status:
            sys.exit(status)
        rows = json.loads(out.read_text())
    RESULTS.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
