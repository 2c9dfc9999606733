"""What a number depends on besides the model, and a code that tells one such protocol from another.

    protocol = protocol_of(extractor, reference, images=50_000, components=None)
    protocol["code"]                     # numbers with different codes must not be compared
    print(text(result))                  # the numbers never without it

The code is a hash of the extractor with its weights, the number of generated images, whether they
are of all classes alike, the reference and what the metrics are. How the images were made (steps,
seeds) is the model's affair: it stands beside the protocol, and is what may be compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fasttrain.evaluation.neighbours import NEIGHBOURS
from fasttrain.files import read_json

__all__ = ["HIGHER_IS_BETTER", "METRICS", "UNREADABLE", "kept_texts", "protocol_of", "said"]
__all__ += ["text"]

METRICS = {
    "fd": "Frechet distance",
    "fd_full": "Frechet distance, all dimensions",
    "kd": "kernel distance",
    "precision": "precision",
    "recall": "recall",
    "is": "inception score",
}
"""Every metric and what it is called."""
HIGHER_IS_BETTER = ("precision", "recall", "is")
UNREADABLE = (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError)
"""What a result's file raises that is damaged, or was never one."""
VERSION = 1
"""Of what the metrics compute: one more when a number changes for the same features."""


def protocol_of(
    extractor: Mapping[str, Any],
    reference: Mapping[str, Any],
    *,
    images: int,
    components: int | None,
    balanced: bool = True,
) -> dict[str, Any]:
    """The protocol of numbers that come from `extractor` (its own protocol), a reference and so
    many generated images, `fd` being on so many leading components, or on all dimensions.

    balanced: no class has two generated images more than another.
    """
    protocol = {
        "extractor": dict(extractor),
        "images": images,
        "balanced": balanced,
        "reference": dict(reference),
        "components": components,
        "neighbours": NEIGHBOURS,
        "version": VERSION,
    }
    # The reference's name is for people; what it holds is in its hash.
    nameless = {key: value for key, value in reference.items() if key != "data"}
    told = json.dumps({**protocol, "reference": nameless}, sort_keys=True)
    return {"code": hashlib.sha256(told.encode()).hexdigest()[:8], **protocol}


def text(result: Mapping[str, Any]) -> str:
    """The result of `evaluate_model` for people."""
    model, protocol = result["model"], result["protocol"]
    seen = f" after {model['images_seen']:,} images" if model["images_seen"] else ""
    classes = f", classes {model['classes']}" if model["classes"] else ""
    lines = [
        f"{model['name']}{seen} (weights {model['weights']}): {model['sampler']}; "
        f"seeds {model['seeds']}{classes}",
        f"{'':46}{'':>10}   95 % interval over seeds",
    ]
    for name, estimate in result["metrics"].items():
        title = name if METRICS[name] == name else f"{name}: {METRICS[name]}"
        interval = f"none: {estimate.get('why') or 'too few images'}"
        if estimate["low"] is not None:
            interval = f"{estimate['low']:.5g} to {estimate['high']:.5g}"
        lines.append(f"{title:46}{estimate['value']:>10.5g}   {interval}")
    return "\n".join([*lines, *said(protocol), f"saved: {result['path']}"])


def kept_texts(run: Path) -> list[str]:
    """The texts of the results in a run directory; what cannot be read is left out."""
    found = []
    for path in sorted(run.glob("evaluation-*.json")):
        with suppress(*UNREADABLE):
            result = read_json(path)
            found.append(text({**result, "path": path.name}))
    return found


def said(protocol: Mapping[str, Any]) -> list[str]:
    """The protocol in lines of text. One without a code, of earlier evaluations, says less."""
    if "code" not in protocol:
        return ["protocol: " + ", ".join(f"{key} {value}" for key, value in protocol.items())]
    extractor, reference = protocol["extractor"], protocol["reference"]
    features = ", ".join(f"{k} {v}" for k, v in extractor.items() if k != "extractor")
    components = protocol["components"]
    of = "its number and size of images are not recorded"
    if reference["images"] is not None:
        resized = ", resized to that" if reference["resized"] else ""
        of = f"{reference['images']:,} images of {reference['size']}x{reference['size']}{resized}"
    classes = "" if protocol.get("balanced", True) else ", not of all classes alike"
    return [
        f"protocol {protocol['code']} (numbers with another code do not compare with these):",
        f"  features   {extractor['extractor']}: {features}",
        f"  generated  {protocol['images']:,} images{classes}",
        f"  reference  {reference['data']}: {of}; content {reference['content']}",
        f"  fd         {f'{components} leading components' if components else 'all dimensions'}; "
        f"precision, recall: {protocol['neighbours']} neighbours",
    ]
