"""The protocol of a metric: everything that it depends on besides the model, and a code for it.

    protocol = protocol_of(extractor, reference, images=50_000, components=None)
    protocol["code"]                     # numbers with different codes must not be compared
    said(protocol)                       # in lines of text

The code is a hash of the extractor with its weights, the number of generated images, whether all
classes have equally many, the reference and the definitions of the metrics. Steps and seeds belong
to the model: they are stored beside the protocol, and may be compared under one code.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fasttrain.evaluation.collect import KEPT
from fasttrain.evaluation.metrics.neighbours import NEIGHBOURS

__all__ = ["HIGHER_IS_BETTER", "METRICS", "PAIRED", "UNREADABLE", "balanced", "protocol_of"]
__all__ += ["said"]

METRICS = {
    "fd": "Frechet distance",
    "fd_full": "Frechet distance, all dimensions",
    "kd": "kernel distance",
    "precision": "precision",
    "recall": "recall",
    "is": "inception score",
}
"""Every metric and its title."""
PAIRED = ("kd", "precision", "recall")
"""Metrics that compare images with images: the reference's statistics are not enough."""
HIGHER_IS_BETTER = ("precision", "recall", "is")
UNREADABLE = (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError)
"""Errors from a result's file that is damaged, or never was one."""
VERSION = 1
"""Version of the metrics: increased when a metric changes for the same features."""


def protocol_of(
    extractor: Mapping[str, Any],
    reference: Mapping[str, Any],
    *,
    images: int,
    components: int | None,
    balanced: bool = True,
) -> dict[str, Any]:
    """The protocol of metrics from `extractor` (its own protocol), a reference and a number of
    generated images; `components`: leading components of `fd`, None for all dimensions.

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
    if max(images, reference["images"] or 0) > KEPT:  # in earlier results, at even distances
        protocol["kept"] = "at random"
    # The reference's name is for people; its hash covers the content.
    nameless = {key: value for key, value in reference.items() if key != "data"}
    text = json.dumps({**protocol, "reference": nameless}, sort_keys=True)
    return {"code": hashlib.sha256(text.encode()).hexdigest()[:8], **protocol}


def balanced(seeds: Sequence[int], classes: int) -> bool:
    """Whether no class has two images more than another; seeds give the classes in turn."""
    if not classes:
        return True
    counts = Counter(seed % classes for seed in seeds)
    return max(counts.values()) - min(counts[label] for label in range(classes)) <= 1


def said(protocol: Mapping[str, Any]) -> list[str]:
    """The protocol in lines of text; one without a code, of earlier evaluations, has fewer."""
    if "code" not in protocol:
        return ["protocol: " + ", ".join(f"{key} {value}" for key, value in protocol.items())]
    extractor, reference = protocol["extractor"], protocol["reference"]
    features = ", ".join(f"{k} {v}" for k, v in extractor.items() if k != "extractor")
    components = protocol["components"]
    of = "its number and size of images are not recorded"
    if reference["images"] is not None:
        resized = ", resized to that" if reference["resized"] else ""
        of = f"{reference['images']:,} images of {reference['size']}x{reference['size']}{resized}"
    classes = "" if protocol.get("balanced", True) else ", not equally many of each class"
    return [
        f"protocol {protocol['code']} (do not compare with numbers of another code):",
        f"  features   {extractor['extractor']}: {features}",
        f"  generated  {protocol['images']:,} images{classes}",
        f"  reference  {reference['data']}: {of}; content {reference['content']}",
        f"  fd         {f'{components} leading components' if components else 'all dimensions'}; "
        f"precision, recall: {protocol['neighbours']} neighbours",
    ]
