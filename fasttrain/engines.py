"""One seam for how a module is trained: `LocalEngine` (one process of plain PyTorch, the oracle)
and `DeepSpeedEngine` (many processes, ZeRO). The only file that imports deepspeed.

    engine = make_engine(generator, optimizer_settings, ...)
    engine.backward(share * loss)         # any number of times
    engine.step()

Both compute the same update: gradients add up over `backward` calls, are averaged over processes
and applied by one Adam step. `state_dict()` gives full named tensors (`module/...`, `exp_avg/...`,
`exp_avg_sq/...`, `steps`), the same at every ZeRO stage, so a checkpoint of one resumes in another.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from fasttrain.distributed import World
from fasttrain.errors import UserError
from fasttrain.settings import EngineSettings, OptimizerSettings

__all__ = ["DeepSpeedEngine", "Engine", "LocalEngine", "make_engine"]

MOMENTS = ("exp_avg", "exp_avg_sq")

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Engine(Generic[ModuleT]):
    """What the loops know of an engine.

    module: called as a whole. trained: the part of it that holds every parameter to be trained
    (the discriminator's heads; the module itself when not given) and that is saved.
    """

    def __init__(
        self,
        module: ModuleT,
        settings: OptimizerSettings,
        *,
        trained: nn.Module | None = None,
        lazy_interval: int | None = None,
    ) -> None:
        self.module = module
        self.trained = module if trained is None else trained
        self.settings = settings
        self.parameters = {n: p for n, p in self.trained.named_parameters() if p.requires_grad}
        # An extra regularisation step each `interval` steps: Adam is slowed down to match
        # (StyleGAN2, appendix B).
        lazy = 1.0 if lazy_interval is None else lazy_interval / (lazy_interval + 1)
        self.rate = settings.rate * lazy
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(
            list(self.parameters.values()),
            lr=self.rate,
            betas=(float(settings.betas[0]) ** lazy, float(settings.betas[1]) ** lazy),
            eps=settings.eps,
            fused=True,
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def set_progress(self, images: int) -> None:
        """Set the learning rate for the step that follows `images` images."""
        if self.settings.ramp_up:
            rate = self.rate * min(1.0, images / self.settings.ramp_up)
            for group in self.optimizer.param_groups:
                group["lr"] = rate

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a scalar; the mean over processes is taken in `step`."""
        raise NotImplementedError

    def step(self) -> None:
        """Apply the gradients collected since the last step and clear them."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Full named tensors; every process must call it, the tensors are the same on all."""
        state = {f"module/{name}": value for name, value in self.trained.state_dict().items()}
        for moment in MOMENTS:
            for name, value in self._moments(moment).items():
                state[f"{moment}/{name}"] = value
        state["steps"] = torch.tensor(self._steps(), dtype=torch.int64)
        return state

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over a state from any engine. Raises KeyError when a tensor is missing."""
        self.trained.load_state_dict(_under(state, "module"))
        self._load_optimizer({m: _under(state, m) for m in MOMENTS}, int(state["steps"]))

    def _moments(self, moment: str) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def _steps(self) -> int:
        raise NotImplementedError

    def _load_optimizer(self, moments: dict[str, dict[str, torch.Tensor]], steps: int) -> None:
        raise NotImplementedError


class LocalEngine(Engine[ModuleT]):
    """One process of plain PyTorch."""

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _moments(self, moment: str) -> dict[str, torch.Tensor]:
        state = self.optimizer.state
        return {n: state[p][moment] for n, p in self.parameters.items() if p in state}

    def _steps(self) -> int:
        return max((int(s["step"]) for s in self.optimizer.state.values()), default=0)

    def _load_optimizer(self, moments: dict[str, dict[str, torch.Tensor]], steps: int) -> None:
        _load_adam(self.optimizer, self.parameters, moments, steps)


class DeepSpeedEngine(Engine[ModuleT]):
    """DeepSpeed with ZeRO 0, 1 or 2 in float32; layers decide the activations' type themselves.

    The module is always called directly, never through DeepSpeed's engine: the discriminator is
    used in the generator's step too, and stages 0 to 2 keep whole parameters in place. Gradients
    are accumulated here (`managed_gradient_accumulation: false`), with DeepSpeed's default
    clipping switched off.
    """

    def __init__(
        self,
        module: ModuleT,
        settings: OptimizerSettings,
        engine: EngineSettings,
        world: World,
        *,
        trained: nn.Module | None = None,
        lazy_interval: int | None = None,
    ) -> None:
        super().__init__(module, settings, trained=trained, lazy_interval=lazy_interval)
        if world.device.type == "cpu":
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        os.environ.setdefault("LOCAL_RANK", "0")  # one process, started without a launcher
        import deepspeed  # slow to import, and not needed by one process

        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        # Its shared-memory all-reduce for CPUs would be compiled on the user's machine at start.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.stage = engine.zero_stage
        with _contiguous(self.trained):
            self.deepspeed, *_ = deepspeed.initialize(
                model=self.trained,
                optimizer=self.optimizer,
                model_parameters=list(self.parameters.values()),
                dist_init_required=False,
                config={
                    "train_micro_batch_size_per_gpu": 1,
                    "gradient_accumulation_steps": 1,
                    "managed_gradient_accumulation": False,
                    "gradient_clipping": 0.0,
                    "zero_optimization": {"stage": self.stage},
                    "zero_allow_untested_optimizer": True,
                    **engine.deepspeed,
                },
            )

    def backward(self, loss: torch.Tensor) -> None:
        self.deepspeed.backward(loss)

    def step(self) -> None:
        self.deepspeed.step()
        if not self.deepspeed.was_step_applied():
            raise UserError("a gradient is not finite: start another run=DIR with lower rates")

    def _moments(self, moment: str) -> dict[str, torch.Tensor]:
        if self.stage == 0:
            state = self.optimizer.state
            return {n: state[p][moment] for n, p in self.parameters.items() if p in state}
        from deepspeed.utils import safe_get_full_optimizer_state

        if not self._steps():
            return {}
        return {n: safe_get_full_optimizer_state(p, moment) for n, p in self.parameters.items()}

    def _steps(self) -> int:
        return max((int(s["step"]) for s in self.optimizer.state.values() if s), default=0)

    def _load_optimizer(self, moments: dict[str, dict[str, torch.Tensor]], steps: int) -> None:
        if self.stage == 0:
            _load_adam(self.optimizer, self.parameters, moments, steps)
            return
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        # DeepSpeed makes the flat moments at the first step: make them now, then fill them.
        for group in self.optimizer.param_groups:
            for flat in group["params"]:
                self.optimizer.state[flat] = _adam_state(flat, steps)
        self.deepspeed.optimizer._hp_optimizer_states_linked = False
        self.deepspeed.optimizer._lazy_init_hp_params_optimizer_state()
        for name, parameter in self.parameters.items():
            safe_set_full_fp32_param(parameter, parameter.detach())
            for moment in MOMENTS:
                if name in moments[moment]:
                    safe_set_full_optimizer_state(parameter, moments[moment][name], moment)


@contextmanager
def _contiguous(module: nn.Module) -> Iterator[None]:
    """Weights in channels_last lie plainly meanwhile: DeepSpeed broadcasts a parameter's bytes, and
    takes no others."""
    others = [p for p in module.parameters() if not p.is_contiguous()]
    for parameter in others:
        parameter.data = parameter.data.contiguous()
    yield
    for parameter in others:
        parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def _adam_state(parameter: torch.Tensor, steps: int) -> dict[str, torch.Tensor]:
    """Adam's state before any moment is filled in; `step` lives where fused Adam wants it."""
    state = {moment: torch.zeros_like(parameter) for moment in MOMENTS}
    state["step"] = torch.tensor(float(steps), device=parameter.device)
    return state


def _load_adam(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    moments: Mapping[str, Mapping[str, torch.Tensor]],
    steps: int,
) -> None:
    optimizer.state.clear()
    for name, parameter in parameters.items():
        if name in moments["exp_avg"]:  # else it never had a gradient
            optimizer.state[parameter] = _adam_state(parameter, steps)
            for moment in MOMENTS:
                optimizer.state[parameter][moment].copy_(moments[moment][name])


def make_engine(
    module: ModuleT,
    optimizer: OptimizerSettings,
    engine: EngineSettings,
    world: World,
    *,
    trained: nn.Module | None = None,
    lazy_interval: int | None = None,
) -> Engine[ModuleT]:
    """The engine that the settings and the launch ask for.

    Raises UserError when several processes were launched for the local engine.
    """
    if engine.kind == "local" and world.size > 1:
        raise UserError(
            f"engine.kind=local is one process, {world.size} were launched; set engine.kind=auto"
        )
    if engine.kind == "deepspeed" or world.size > 1:
        return DeepSpeedEngine(
            module, optimizer, engine, world, trained=trained, lazy_interval=lazy_interval
        )
    return LocalEngine(module, optimizer, trained=trained, lazy_interval=lazy_interval)


def _under(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    start = prefix + "/"
    return {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
