"""Versions of DeepSpeed that `fasttrain.training.engines.zero` works with, and the internal names
that it uses. Does not import DeepSpeed.

    check_version(deepspeed.__version__)
    check_names(deepspeed, engine, stage, parameter)
"""

from __future__ import annotations

import re
import warnings
from typing import Any

from fasttrain.system.errors import UserError

__all__ = ["NEEDED", "check_names", "check_version", "too_new", "too_old"]

FIRST, BEFORE = (0, 19, 4), (0, 20)
"""Older versions silently ignore `managed_gradient_accumulation: false`: only the last of several
micro-batches would count. Newer ones may rename internal names."""
NEEDED = "deepspeed>=0.19.4,<0.20"

UTILS = ("safe_set_full_optimizer_state", "safe_set_full_fp32_param", "set_z3_leaf_modules")
ENGINE = (
    *("backward", "step", "zero_grad", "buffered_allreduce_fallback", "enable_backward_allreduce"),
    *("get_global_grad_norm", "was_step_applied"),
)
OPTIMIZER = {
    0: (),
    1: (
        *("single_partition_of_fp32_groups", "averaged_gradients", "all_grad_tensors"),
        *("_hp_optimizer_states_linked", "_lazy_init_hp_params_optimizer_state"),
    ),
    3: ("fp32_partitioned_groups_flat", "grad_partitions_flat_buffer", "get_local_fp32_param"),
}
OPTIMIZER[2] = OPTIMIZER[1]
PARAMETER = {0: (), 1: ("_hp_mapping",), 2: ("_hp_mapping",), 3: ("ds_tensor",)}
"""Internal names that are used, by ZeRO stage."""


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def too_old(version: str) -> bool:
    return _release(version) < FIRST


def too_new(version: str) -> bool:
    return _release(version) >= BEFORE


def check_version(version: str) -> None:
    """Raises UserError for a version with a wrong result; warns of an untested one."""
    if too_old(version):
        raise UserError(
            f"DeepSpeed {version} drops the gradients of all micro-batches but the last: "
            f"pip install '{NEEDED}'"
        )
    if too_new(version):
        warnings.warn(
            f"DeepSpeed {version} is newer than the tested versions: if it fails, "
            f"pip install '{NEEDED}'",
            stacklevel=2,
        )


def check_names(package: Any, engine: Any, stage: int, parameter: Any) -> None:
    """Raises UserError, before anything is trained, when DeepSpeed, its engine, its ZeRO optimizer
    or a trained parameter lacks an internal name that is used: some are used at the first
    checkpoint only."""
    parts = (
        ("utils", package.utils, UTILS),
        ("engine", engine, ENGINE),
        ("optimizer", engine.optimizer, OPTIMIZER[stage]),
        ("parameter", parameter, PARAMETER[stage]),
    )
    missing = [
        f"{of}.{name}" for of, part, names in parts for name in names if not hasattr(part, name)
    ]
    if missing:
        raise UserError(
            f"this DeepSpeed has no {', '.join(missing)} at ZeRO {stage}: pip install '{NEEDED}'"
        )
