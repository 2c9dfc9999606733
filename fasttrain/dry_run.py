"""`--dry-run`: what a recipe resolves to and what of the network would train, from the settings
alone: no data, no weights, the network on the meta device."""

from __future__ import annotations

import torch

from fasttrain.config import to_yaml
from fasttrain.freezing import FreezingAudit, apply_freezing, audit
from fasttrain.models import new_network
from fasttrain.settings import FinetuneSettings, RunSettings

__all__ = ["audit_of", "dry_run"]


def audit_of(settings: RunSettings) -> FreezingAudit:
    """The freezing audit of the settings' U-Net, built on the meta device."""
    with torch.device("meta"):
        network = new_network("edm", settings.network)
    if isinstance(settings, FinetuneSettings):
        apply_freezing(network.model, settings.freeze)
    return audit(network.model)


def dry_run(settings: RunSettings) -> str:
    """Resolved settings as YAML, then the audit table."""
    return f"{to_yaml(settings)}\n{audit_of(settings).table()}"
