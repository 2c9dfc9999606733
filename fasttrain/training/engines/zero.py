"""DeepSpeed as an `Engine`; the only file that imports deepspeed.

Parts of the trained parameters that ZeRO shards over W processes (frozen weights have neither
gradient nor optimizer state, and are complete on every process except at stage 3):

    stage 0    nothing; gradients are averaged by an all-reduce
    stage 1    Adam's moments, their float32 copy of the parameters, the average (EMA)
    stage 2    and the gradients
    stage 3    and all weights, the frozen ones too: a block's are gathered while it computes

Everything keeps the layers' float32 (DeepSpeed's precision blocks stay off), the caller accumulates
gradients, and nothing is clipped. DeepSpeed's own checkpoints are not used: `parts` and `whole`
give full named tensors at every stage.

Stages 0 to 2 keep full weights in place, and the module is called directly. At stage 3 it is called
through DeepSpeed, which gathers by hooks; a network's `blocks()`, which use their layers'
weights themselves, are gathered as units. Only modules with such blocks can be trained at stage 3.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fasttrain.settings import EngineSettings, OptimizerSettings
from fasttrain.system.connecting import connecting
from fasttrain.system.processes import World, set_timeout
from fasttrain.training.engines.deepspeed_version import check_names, check_version
from fasttrain.training.engines.engine import MOMENTS, Engine, ModuleT, adam_state, load_adam

__all__ = ["DeepSpeedEngine", "json_config"]

BUCKET = 50_000_000
"""Limit of a communication bucket, in values; DeepSpeed's default reserves 2 GB for each engine."""

ALIGNED = 1024
"""DeepSpeed requires bucket sizes that are multiples of twice the world size."""


def json_config(engine: EngineSettings, stage: int, trained: int) -> dict[str, Any]:
    """DeepSpeed's JSON for an engine that trains `trained` values."""
    bucket = -(-min(BUCKET, trained) // ALIGNED) * ALIGNED
    zero = {"stage": stage, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
    if stage == 3:
        zero["stage3_prefetch_bucket_size"] = bucket
        # With its defaults, a billion values each, all gathered weights would stay.
        zero["stage3_max_live_parameters"] = zero["stage3_max_reuse_distance"] = bucket
        # It would replace torch's `linear` by two operators, for the rest of the process.
        zero["memory_efficient_linear"] = False
    if stage < 2:
        zero["overlap_comm"] = False  # not supported with our own accumulation
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "timers": {"throughput": {"enabled": False}},  # these wait for the GPU twice a step
        **engine.deepspeed,
        "zero_optimization": {**zero, **engine.deepspeed.get("zero_optimization", {})},
    }


class DeepSpeedEngine(Engine[ModuleT]):
    """DeepSpeed with ZeRO `stage` 0, 1, 2 or 3, after `fasttrain.system.processes.start`."""

    def __init__(
        self,
        module: ModuleT,
        settings: OptimizerSettings,
        engine: EngineSettings,
        world: World,
        *,
        stage: int,
        trained: nn.Module | None = None,
        lazy_interval: int | None = None,
    ) -> None:
        super().__init__(module, settings, trained=trained, lazy_interval=lazy_interval)
        self.world, self.stage = world, stage
        self.shapes = {n: p.shape for n, p in self.trained.named_parameters()}
        if world.device.type == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        os.environ.setdefault("LOCAL_RANK", "0")  # one process, started without a launcher
        import deepspeed

        check_version(deepspeed.__version__)
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        # It uses deprecated names of torch's collectives, with a warning at each call.
        warnings.filterwarnings("ignore", "`torch.distributed", FutureWarning)
        # Its shared-memory all-reduce for CPUs would be compiled on the user's machine at startup.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        if stage == 3:
            kinds = {type(block): None for block in self.trained.blocks()}  # type: ignore[operator]
            deepspeed.utils.set_z3_leaf_modules(self.trained, list(kinds))
            self.trained.apply(lambda module: setattr(module, "apart", True))
        minutes = engine.timeout_minutes
        with _contiguous(self.trained, restore=stage < 3), connecting(minutes, beyond=120):
            self.deepspeed, *_ = deepspeed.initialize(
                model=self.trained,
                optimizer=self.optimizer,
                model_parameters=list(self.parameters.values()),
                dist_init_required=False,
                config=json_config(engine, stage, sum(p.numel() for p in self.parameters.values())),
            )
        check_names(deepspeed, self.deepspeed, stage, next(iter(self.parameters.values())))
        if stage == 0:
            self.deepspeed.enable_backward_allreduce = False  # `step` does it, and checks them
        set_timeout(engine.timeout_minutes)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.stage < 3:
            return self.module(*args, **kwargs)
        # A block none of whose inputs has a gradient would be reduced before its weights have one.
        first = args[0] if args[0].requires_grad else args[0].detach().requires_grad_()
        return self.deepspeed(first, *args[1:], **kwargs)

    def _backward(self, loss: Tensor) -> None:
        self.deepspeed.backward(loss)

    def step(self) -> bool:
        self._measure_gradients()
        if self.stage == 0 and not self._finite():
            self.deepspeed.zero_grad()
            return False
        self.deepspeed.step()
        if self.stage:
            self.norm = self.deepspeed.get_global_grad_norm()  # stays on the GPU, without a wait
        applied = bool(self.deepspeed.was_step_applied())
        if applied:
            self._after_step()
        return applied

    def _after_step(self) -> None:
        """Also on the optimizer's own copies of the weights, which stages 1 to 3 keep."""
        changed = [p for network in self._networks() for p in network.changes_after_step()]
        if not changed or not self.stage:
            super()._after_step()
            return
        import deepspeed
        from deepspeed.utils import safe_set_full_fp32_param

        with deepspeed.zero.GatheredParameters(changed, modifier_rank=0, enabled=self.stage == 3):
            super()._after_step()
            full = [parameter.detach().clone() for parameter in changed]
        for parameter, value in zip(changed, full, strict=True):
            safe_set_full_fp32_param(parameter, value)

    def _finite(self) -> bool:
        """Stage 0: average the gradients; returns whether they are finite."""
        self.deepspeed.buffered_allreduce_fallback(elements_per_buffer=BUCKET)
        return self._finite_norm()

    def _tensors(self) -> dict[str, list[Tensor]]:
        tensors = super()._tensors()
        zero = self.deepspeed.optimizer
        if self.stage == 3:
            for kind in ("trained", "frozen"):
                tensors[kind] += [p.ds_tensor for p in tensors[kind]]  # type: ignore[attr-defined]
            tensors["master"] = list(zero.fp32_partitioned_groups_flat)
        elif self.stage:
            tensors["master"] = list(zero.single_partition_of_fp32_groups)
        return tensors

    def _gradients(self) -> list[Tensor]:
        found = super()._gradients()
        zero = self.deepspeed.optimizer
        if self.stage == 3:
            found.append(zero.grad_partitions_flat_buffer)
        elif self.stage == 2:
            for group in (*zero.averaged_gradients.values(), *zero.all_grad_tensors.values()):
                found += [gradient for gradient in group or () if gradient is not None]
        return found

    def part(self, name: str, full: Tensor) -> Tensor:
        return self._slice(full.reshape(-1)) if self.stage else full

    def parts(self) -> dict[str, Tensor]:
        if self.stage == 3:
            return {n: self._held(n, p.ds_tensor) for n, p in self.parameters.items()}  # type: ignore[attr-defined]
        return {n: self.part(n, p.detach()) for n, p in self.parameters.items()}

    def whole(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.stage == 0:
            return dict(parts) if self.world.is_main else {}
        names = list(parts)
        sizes = [self.shapes[name].numel() for name in names]
        return self._named(names, self.world.assemble([parts[name] for name in names], sizes))

    def _named(self, names: Iterable[str], full: list[Tensor]) -> dict[str, Tensor]:
        """Flat tensors, which the main process alone has, in their shapes."""
        return {n: t.view(self.shapes[n]) for n, t in zip(names, full, strict=self.world.is_main)}

    def constants(self) -> dict[str, Tensor]:
        if self.stage < 3:
            return super().constants()
        frozen = {n: p for n, p in self.trained.named_parameters() if not p.requires_grad}
        parts = {n: self._held(n, p.ds_tensor) for n, p in frozen.items()}  # type: ignore[attr-defined]
        return self.whole(parts) | self._buffers()

    def _slice(self, flat: Tensor) -> Tensor:
        """This process's part of a flat tensor: ceil(n / W) values, fewer or none at the end."""
        each = -(-flat.numel() // self.world.size)
        return flat[self.world.rank * each : (self.world.rank + 1) * each]

    def _held(self, name: str, shard: Tensor) -> Tensor:
        """Stage 3's shard of a parameter without its padding."""
        numel = self.shapes[name].numel()
        left = numel - self.world.rank * (-(-numel // self.world.size))
        return shard.detach().reshape(-1)[: max(0, min(shard.numel(), left))]

    def _moments(self, moment: str) -> dict[str, Tensor]:
        if self.stage == 0:
            state = self.optimizer.state
            found = {n: state[p][moment] for n, p in self.parameters.items() if p in state}
            return found if self.world.is_main else {}
        if self.stage == 3:
            return self.whole({n: self._shard(n, moment) for n in self.parameters})
        sizes = [self.shapes[name].numel() for name in self.parameters]
        fragments = [self._fragment(p, moment) for p in self.parameters.values()]
        return self._named(self.parameters, self.world.add_up(fragments, sizes))

    def _fragment(self, parameter: Any, moment: str) -> tuple[int, Tensor]:
        """Stages 1 and 2: where this process's values of a moment begin, and the values."""
        held = parameter._hp_mapping
        if held is None:
            return 0, parameter.new_empty(0)  # all of it is another process's
        return held.lp_fragment_address.start, held.get_hp_fragment(moment)

    def _shard(self, name: str, moment: str | None) -> Tensor:
        """Stage 3: this process's part of a moment, or of the float32 copy; a view."""
        held = self.deepspeed.optimizer.get_local_fp32_param(self.parameters[name], moment)
        return self._held(name, held)

    @torch.no_grad()
    def _load_parameters(self, values: Mapping[str, Tensor]) -> None:
        if self.stage == 3:
            import deepspeed

            for name, parameter in self.parameters.items():
                with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                    if self.world.is_main:
                        parameter.copy_(values[name])
                self._shard(name, None).copy_(self.part(name, values[name]))
            return
        super()._load_parameters(values)
        if self.stage:
            from deepspeed.utils import safe_set_full_fp32_param

            for parameter in self.parameters.values():
                safe_set_full_fp32_param(parameter, parameter.detach())

    def _load_optimizer(self, moments: dict[str, dict[str, Tensor]], steps: int) -> None:
        if self.stage == 0:
            load_adam(self.optimizer, self.parameters, moments, steps)
            return
        # DeepSpeed creates the flat moments at the first step: create them now, then fill them.
        self.optimizer.state.clear()
        if not moments["exp_avg"]:
            return
        for flat in self._flat():
            self.optimizer.state[flat] = adam_state(flat, steps)
        if self.stage < 3:
            self.deepspeed.optimizer._hp_optimizer_states_linked = False
            self.deepspeed.optimizer._lazy_init_hp_params_optimizer_state()
        from deepspeed.utils import safe_set_full_optimizer_state

        for name, parameter in self.parameters.items():
            for moment in MOMENTS:
                if name not in moments[moment]:
                    continue
                value = moments[moment][name]
                if self.stage == 3:
                    self._shard(name, moment).copy_(self.part(name, value))
                else:
                    safe_set_full_optimizer_state(parameter, value, moment)

    def _flat(self) -> Sequence[Tensor]:
        """This process's flat parts, which Adam updates."""
        if self.stage == 3:
            return list(self.deepspeed.optimizer.fp32_partitioned_groups_flat)
        return [flat for group in self.optimizer.param_groups for flat in group["params"]]


@contextmanager
def _contiguous(module: nn.Module, *, restore: bool) -> Iterator[None]:
    """Make weights in channels_last contiguous for the duration: DeepSpeed broadcasts a parameter's
    bytes, and accepts no other layout."""
    others = [p for p in module.parameters() if not p.is_contiguous()]
    for parameter in others:
        parameter.data = parameter.data.contiguous()
    yield
    for parameter in others if restore else ():
        parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
