"""Networks by name, and the arguments of their constructors from the settings.

network_class("SongUNet")
build_network("edm", **arguments_of(settings.network))
"""

from __future__ import annotations

from inspect import signature
from typing import Any

from fasttrain.models.networks.network import Network
from fasttrain.settings import NetworkSettings
from fasttrain.settings.mistakes import did_you_mean
from fasttrain.settings.registry import NETWORKS, load

__all__ = ["arguments_of", "network_class"]

OF_THE_WRAPPER = ("model_type", "img_resolution", "img_channels", "label_dim")
"""Settings that every network has."""
FROM_THE_WRAPPER = ("img_resolution", "in_channels", "out_channels", "label_dim")
"""Arguments that the preconditioner passes."""


def network_class(name: str) -> type[Network]:
    """Raises ValueError for a name that is not in the registry."""
    if name not in NETWORKS:
        raise ValueError(f"model_type is {name!r}: choose one of {', '.join(NETWORKS)}")
    network: type[Network] = load(NETWORKS[name])
    return network


def arguments_of(settings: NetworkSettings) -> dict[str, Any]:
    """Keyword arguments of `build_network`: the settings that the network's constructor accepts,
    and its options.

    Raises ValueError for a setting, not at its default, or an option that it does not accept.
    """
    kind = settings.model_type
    taken = set(signature(network_class(kind)).parameters) - set(FROM_THE_WRAPPER)
    values = settings.model_dump(exclude={"options", "prediction"})
    fields = type(settings).model_fields  # a run's settings are saved whole, with their defaults
    arguments = {name: values[name] for name in OF_THE_WRAPPER}
    for name in [name for name in values if name not in OF_THE_WRAPPER]:
        if name in taken:
            arguments[name] = values[name]
        elif values[name] != fields[name].default:
            raise ValueError(f"{name}: a {kind} has no such setting; remove it")
    own = taken - set(fields)
    for name, value in settings.options.items():
        if name not in own:
            raise ValueError(
                f"options.{name}: a {kind} has no such option{did_you_mean(name, sorted(own))}"
            )
        arguments[name] = value
    if settings.prediction != type(settings.prediction)():
        arguments["prediction"] = settings.prediction
    return arguments
