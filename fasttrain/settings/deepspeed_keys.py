"""Keys of DeepSpeed's JSON that a user may set: those that change no result, even when a run is
stopped and resumed (tests/runs/test_deepspeed_keys.py tries each at every stage). The others follow
from our own settings, or are not known to be harmless.

check_passed_on({"steps_per_print": 10, "zero_optimization": {"overlap_comm": True}}, stage=2)
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

__all__ = ["PASSED_ON", "PASSED_ON_ZERO", "check_passed_on"]

PASSED_ON = {
    *("comms_logger", "memory_breakdown", "steps_per_print", "dump_state"),
    *("tensorboard", "csv_monitor"),
}
"""Keys of DeepSpeed's JSON that add output and change nothing."""

PASSED_ON_ZERO = {
    *("allgather_partitions", "allgather_bucket_size", "reduce_scatter", "reduce_bucket_size"),
    *("overlap_comm", "sub_group_size"),
    *("use_multi_rank_bucket_allreduce", "log_trace_cache_warnings"),
    *("stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"),
    *("stage3_model_persistence_threshold", "stage3_max_live_parameters"),
    *("stage3_max_reuse_distance", "stage3_use_all_reduce_for_fetch_params"),
    *("stage3_allgather_sequential",),
}
"""Keys of its `zero_optimization` that change only the timing and size of messages."""

OWNED = {
    *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"),
    *("managed_gradient_accumulation", "gradient_clipping", "optimizer", "scheduler"),
    *("fp16", "bf16", "bfloat16", "amp", "torch_autocast", "data_types"),
    *("communication_data_type", "zero_allow_untested_optimizer"),
}
"""Keys of DeepSpeed's JSON that follow from our own settings, or that would change the
computation."""

OWNED_ZERO = {"stage"}

REFUSED = dict.fromkeys(
    ("flops_profiler", "wall_clock_breakdown"),
    "its timers start in DeepSpeed's call of the network, which is not used: see `fasttrain "
    "profile`",
) | {
    "round_robin_gradients": "it shards parameters in another order, and a resumed run would "
    "assign Adam's moments to the wrong ones",
    "contiguous_gradients": "DeepSpeed 0.19.4 computes other gradients without them",
}
"""Keys that were tried and do not work, with the reason."""


def check_passed_on(keys: Mapping[str, Any], stage: int) -> None:
    """Raises ValueError for the first key that fasttrain sets itself, that is unknown, or that does
    not apply to the ZeRO stage; the message says what to do."""
    zero = keys.get("zero_optimization", {})
    if not isinstance(zero, Mapping):
        raise ValueError("deepspeed.zero_optimization: write it as {key: value}")
    _check("deepspeed", keys.keys() - {"zero_optimization"}, PASSED_ON, OWNED)
    _check("deepspeed.zero_optimization", set(zero), PASSED_ON_ZERO, OWNED_ZERO)
    if zero.get("overlap_comm") and stage < 2:
        raise ValueError(
            "deepspeed.zero_optimization: overlap_comm needs ZeRO 2 or 3: set zero_stage to 2, "
            "or leave it out"
        )


def _check(where: str, keys: set[str], known: set[str], owned: set[str]) -> None:
    ours = sorted(keys & owned)
    if ours:
        raise ValueError(f"{where}: {', '.join(ours)}: fasttrain sets this; remove it")
    for key in sorted(keys - known):
        if key in REFUSED:
            raise ValueError(f"{where}: {key} is not passed on to DeepSpeed: {REFUSED[key]}")
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known))}"
        raise ValueError(f"{where}: {key} is not passed on to DeepSpeed: {hint}")
