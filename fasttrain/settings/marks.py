"""Resolved settings as YAML in which a comment marks the user's own values.

print(marked_yaml(settings, written(recipe, overrides).places))

    batch: 64
    images: 2000000  # command line
    run: /home/me/runs/photos  # photos-edm.yaml
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from pydantic import BaseModel

from fasttrain.settings.recipes import to_yaml

__all__ = ["marked_yaml"]

KEY = re.compile(r"( *)([A-Za-z_]\w*):( .*)?$")


def marked_yaml(settings: BaseModel, places: Mapping[str, str]) -> str:
    """The YAML of `to_yaml`; reading it gives the same settings.

    places: dotted name of each value of the user's own -> where it is from.
    """
    lines: list[str] = []
    path: list[str] = []
    for line in to_yaml(settings).splitlines():
        match = KEY.match(line)
        if match:
            path[len(match[1]) // 2 :] = [match[2]]
            place = places.get(".".join(path))
            line += f"  # {place}" if place else ""
        lines.append(line)
    return "\n".join(lines) + "\n"
