"""Choice of the engine by the settings and the launch.

engine = make_engine(generator, settings.generator, settings.engine, world)
"""

from __future__ import annotations

from torch import nn

from fasttrain.settings import EngineSettings, OptimizerSettings
from fasttrain.system.errors import UserError
from fasttrain.system.processes import World
from fasttrain.training.engines.engine import Engine, ModuleT
from fasttrain.training.engines.local import LocalEngine

__all__ = ["make_engine"]


def make_engine(
    module: ModuleT,
    optimizer: OptimizerSettings,
    engine: EngineSettings,
    world: World,
    *,
    stage: int | None = None,
    trained: nn.Module | None = None,
    lazy_interval: int | None = None,
) -> Engine[ModuleT]:
    """The engine for the settings and the launch; stage: default: that of the settings.

    Raises UserError when several processes were launched for the local engine.
    """
    if engine.kind == "local" and world.size > 1:
        raise UserError(f"engine.kind=local is one process, not {world.size}; set engine.kind=auto")
    if engine.kind == "deepspeed" or world.size > 1:
        from fasttrain.training.engines.zero import (
            DeepSpeedEngine,
        )  # a slow import that one process does not need

        return DeepSpeedEngine(
            module,
            optimizer,
            engine,
            world,
            stage=engine.zero_stage if stage is None else stage,
            trained=trained,
            lazy_interval=lazy_interval,
        )
    return LocalEngine(module, optimizer, trained=trained, lazy_interval=lazy_interval)
