"""One process of plain PyTorch: the embedded default, and the oracle for every ZeRO stage."""

from __future__ import annotations

from torch import Tensor

from fasttrain.training.engines.engine import Engine, ModuleT, load_adam

__all__ = ["LocalEngine"]


class LocalEngine(Engine[ModuleT]):
    """One process of plain PyTorch."""

    def _backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self) -> bool:
        self._measure_gradients()
        applied = self._finite_norm()
        if applied:
            self.optimizer.step()
            self._after_step()
        self.optimizer.zero_grad(set_to_none=True)
        return applied

    def _moments(self, moment: str) -> dict[str, Tensor]:
        state = self.optimizer.state
        return {n: state[p][moment] for n, p in self.parameters.items() if p in state}

    def _load_optimizer(self, moments: dict[str, dict[str, Tensor]], steps: int) -> None:
        load_adam(self.optimizer, self.parameters, moments, steps)
