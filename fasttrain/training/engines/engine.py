"""The common interface of engines: `LocalEngine` (one process of plain PyTorch, the oracle) and
`fasttrain.training.engines.zero` (many processes, ZeRO).

    engine = make_engine(generator, optimizer_settings, ...)
    engine.backward(share * loss)         # any number of times
    if engine.step(): ...                 # False: a number was not finite, nothing was changed

All compute the same update: gradients add up over `backward` calls, are averaged over processes and
applied by one Adam step. `state_dict()` holds full named tensors (`module/...`, `exp_avg/...`,
`exp_avg_sq/...`, `steps`) of the trained parameters, the same at every ZeRO stage, so a checkpoint
of one resumes in another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from fasttrain.models.networks.network import Network
from fasttrain.settings import OptimizerSettings

__all__ = ["MOMENTS", "Engine", "adam_state"]


MOMENTS = ("exp_avg", "exp_avg_sq")

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Engine(Generic[ModuleT]):
    """The interface between the loops and an engine.

    module: called as a whole. trained: the part of it with all trained parameters (the
    discriminator's heads; default: the module itself), which is saved.

    Attributes:
        parameters: trained parameters, by their names in `trained`.
        norm: norm of the gradient in the last `step`, over all processes; a tensor while it is
            still on the device.
    """

    norm: Tensor | float = 0.0
    gradient_bytes = 0

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
        settings = self.settings
        if settings.ramp_up or settings.decay.kind != "constant":
            ramp = min(1.0, images / settings.ramp_up) if settings.ramp_up else 1.0
            rate = self.rate * ramp * settings.decay.factor(images)
            for group in self.optimizer.param_groups:
                group["lr"] = rate

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a scalar; the mean over processes is taken in `step`.

        A loss that is not finite is replaced by a gradient that is not, so that every process skips
        the step: the derivative of an infinite loss may be finite.
        """
        self._backward(loss * (1 + (loss - loss).detach()))

    def step(self) -> bool:
        """Apply the gradients collected since the last step and clear them.

        False, on every process, when they were not finite; then nothing else changes.
        """
        raise NotImplementedError

    def _after_step(self) -> None:
        """What a network has to do to its weights once they have moved."""
        for network in self._networks():
            network.after_step()

    def _networks(self) -> list[Network]:
        """What trains may be a network, or have one in it, as a classifier does."""
        return [module for module in self.trained.modules() if isinstance(module, Network)]

    def part(self, name: str, full: Tensor) -> Tensor:
        """This process's part of a tensor with the shape of the parameter `name`; a view."""
        return full

    def parts(self) -> dict[str, Tensor]:
        """This process's part of each trained parameter; views, valid until the next step."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    def whole(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The reverse of `part`, for tensors with any of the names, on the main process (elsewhere
        empty); every process must call it."""
        return dict(parts)

    def constants(self) -> dict[str, Tensor]:
        """Full frozen parameters and buffers of `trained`, at least on the main process; every
        process must call it."""
        frozen = {n: p.detach() for n, p in self.trained.named_parameters() if not p.requires_grad}
        return frozen | self._buffers()

    def state_dict(self) -> dict[str, Tensor]:
        """Full named tensors of the trained parameters, the buffers and Adam, on the main process
        (elsewhere empty); every process must call it."""
        state = {f"module/{n}": value for n, value in self.whole(self.parts()).items()}
        steps = self._steps()
        for moment in MOMENTS if steps else ():
            state |= {f"{moment}/{n}": value for n, value in self._moments(moment).items()}
        if state:
            state |= {f"module/{n}": value for n, value in self._buffers().items()}
            state["steps"] = torch.tensor(steps, dtype=torch.int64)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load a state of any engine; every process passes the same.

        Raises KeyError when a tensor is missing.
        """
        values = _under(state, "module")
        self._load_parameters({name: values[name] for name in self.parameters})
        for name, buffer in self._buffers().items():
            buffer.copy_(values[name])
        self._load_optimizer({m: _under(state, m) for m in MOMENTS}, int(state["steps"]))

    def held(self) -> dict[str, int]:
        """Bytes on this process after a step, by purpose: `trained` and `frozen` parameters of
        `trained`, float32 `master` copies, Adam's `moments`, and the `gradients` just before the
        step."""
        seen: set[int] = set()
        held = {kind: _new_bytes(found, seen) for kind, found in self._tensors().items()}
        return held | {"gradients": self.gradient_bytes}

    def _tensors(self) -> dict[str, list[Tensor]]:
        states = self.optimizer.state.values()
        return {
            "trained": list(self.parameters.values()),
            "frozen": [p for p in self.trained.parameters() if not p.requires_grad],
            "master": [],
            "moments": [state[moment] for state in states if state for moment in MOMENTS],
        }

    def _measure_gradients(self) -> None:
        """Measure once, when all gradients exist."""
        if not self.gradient_bytes:
            self.gradient_bytes = _new_bytes(self._gradients(), set())

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.parameters.values() if p.grad is not None]

    def _buffers(self) -> dict[str, Tensor]:
        whole = self.trained.state_dict(keep_vars=True)
        return {name: b for name, b in self.trained.named_buffers() if name in whole}

    def _finite_norm(self) -> bool:
        """Take the norm of whole gradients; whether it is finite."""
        self.norm = float(torch.nn.utils.get_total_norm(self._gradients()))
        return math.isfinite(self.norm)

    def _backward(self, loss: Tensor) -> None:
        raise NotImplementedError

    def _moments(self, moment: str) -> dict[str, Tensor]:
        """Full moments after at least one step, on the main process (elsewhere empty)."""
        raise NotImplementedError

    def _steps(self) -> int:
        """Adam's steps; fused Adam counts on the GPU, for each parameter."""
        counts = [state["step"] for state in self.optimizer.state.values() if state]
        return int(torch.stack(counts).max()) if counts else 0

    @torch.no_grad()
    def _load_parameters(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.parameters[name].copy_(value)

    def _load_optimizer(self, moments: dict[str, dict[str, Tensor]], steps: int) -> None:
        raise NotImplementedError


def adam_state(parameter: Tensor, steps: int) -> dict[str, Tensor]:
    """Adam's state with empty moments; `step` is on the device that fused Adam needs."""
    state = {moment: torch.zeros_like(parameter) for moment in MOMENTS}
    state["step"] = torch.tensor(float(steps), device=parameter.device)
    return state


def load_adam(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    moments: Mapping[str, Mapping[str, Tensor]],
    steps: int,
) -> None:
    """Fill the state of an Adam over full parameters."""
    optimizer.state.clear()
    for name, parameter in parameters.items():
        if name in moments["exp_avg"]:  # else it never had a gradient
            optimizer.state[parameter] = adam_state(parameter, steps)
            for moment in MOMENTS:
                optimizer.state[parameter][moment].copy_(moments[moment][name])


def _new_bytes(tensors: Iterable[Tensor], seen: set[int]) -> int:
    """Bytes of the tensors' memory that is not in `seen`; adds it to `seen`."""
    total = 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen and storage.nbytes():
            seen.add(storage.data_ptr())
            total += storage.nbytes()
    return total


def _under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = prefix + "/"
    return {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
