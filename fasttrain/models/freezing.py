"""Which parameters of the generator train: D2O-F's freezing. A network says itself what each level
freezes (`Network.freezing`; for the published U-Nets `fasttrain.models.networks.unet`).

The decision is made once, before the optimizer and any engine see the parameters.

    select_trained(generator, settings)           # its level, and adapters
    apply_freezing(generator, level=1)
    print(audit(generator).table())
"""

from __future__ import annotations

from typing import get_args

from fasttrain.models.adapters import adapt
from fasttrain.models.networks import Precond
from fasttrain.models.networks.network import Network
from fasttrain.models.second_time import add_second_time
from fasttrain.settings import RunSettings
from fasttrain.settings.base import FreezeLevel
from fasttrain.system.errors import UserError

__all__ = ["apply_freezing", "frozen_names", "select_trained"]


def select_trained(network: Precond, settings: RunSettings) -> None:
    """Set what trains of a network to what the settings say: what their level of freezing leaves,
    or adapters, which are added to its layers; and a second time, if it is to have one.

    Raises UserError when the network has no layers for these.
    """
    apply_freezing(network.model, settings.freezing)
    if settings.adaptation is not None:
        if settings.adaptation.besides == "nothing":
            network.model.requires_grad_(False)
        adapt(network.model, settings.adaptation, settings.seed)
    if settings.second_time is not None:
        add_second_time(network.model, settings.second_time, settings.seed)


def frozen_names(network: Network | Precond, level: FreezeLevel) -> set[str]:
    """Names of the parameters that `level` freezes; "none": none; "all-but-1": those that level
    1 trains; "all-but-norms": all but the norms.

    Raises:
        ValueError: an unknown level.
        UserError: a network without norms that train.
    """
    if level not in get_args(FreezeLevel):
        known = ", ".join(map(str, get_args(FreezeLevel)))
        raise ValueError(f"freezing level {level!r} is unknown: choose one of {known}")
    if level == "none":
        return set()
    groups = network.freezing()
    every = {name for name, _ in network.named_parameters()}
    if level == "all-but-1":
        return every - set(groups[1])
    if level == "all-but-norms":
        model = network if isinstance(network, Network) else network.model
        kinds = {name: model.kind_of(name.removeprefix("model.")) for name in every}
        if "norm" not in kinds.values():
            raise UserError(f"freeze: {level}: this network has no norms that train")
        return {name for name, kind in kinds.items() if kind != "norm"}
    return {name for above, names in groups.items() if above <= level for name in names}


def apply_freezing(network: Network | Precond, level: FreezeLevel) -> None:
    """Set `requires_grad` of every parameter to what `level` says, both ways."""
    frozen = frozen_names(network, level)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
