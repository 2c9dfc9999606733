"""What the tests of the GPU benchmark share: rows of a real case, and made-up ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from benchmarks.gpu import rows as rows_module
from benchmarks.gpu.attention import CUDNN, FLASH, TRITON
from benchmarks.gpu.case import AGAIN, COMPILE, COPY, EAGER, OURS, Case
from benchmarks.gpu.parts import Budget
from benchmarks.gpu.timing import Clock

CPU = torch.device("cpu")
RATES = {"copy": {"per_second": 1e12}, "matrix": {"per_second": 1e15}}


def rows_of(case: Case, **columns: Any) -> list[dict[str, Any]]:
    """The rows of a case with some columns replaced and no compiled one."""
    kept = {name: f for name, f in case.columns.items() if name in (EAGER, OURS)}
    case = replace(case, columns=kept | columns)
    effort: Any = {"seconds": 0.0, "least": 2}
    return rows_module.rows_of(case, Clock(CPU), CPU, rates=RATES, backend="eager", **effort)


def cell(median: float) -> dict[str, Any]:
    return {"median_ms": median, "p20_ms": median, "p80_ms": median, "repetitions": 3}


def row(**columns: Any) -> dict[str, Any]:
    """A made-up row: `columns` are medians, or texts of errors."""
    names = {"compiled": COMPILE, "again": AGAIN, "copy": COPY, "flash": FLASH, "cudnn": CUDNN,
             "triton": TRITON}  # fmt: skip
    cells = {
        names.get(name, name): {"error": value} if isinstance(value, str) else cell(value)
        for name, value in columns.items()
    }
    about = {
        "op": "group_norm", "case": "192@64", "direction": "forward", "layout": "NHWC",
        "dtype": "bfloat16", "tags": ["adm"], "bytes": 8 * 10**8, "flops": 0, "columns": cells,
        "errors": {}, "kernels": [], "launches": "hidden",
    }  # fmt: skip
    return about | rows_module.judge(about, 1e-2, RATES)


class Spent(Budget):
    """A budget that a test spends."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.used = 0.0

    def spent(self) -> float:
        return self.used
