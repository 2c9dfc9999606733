"""The stop rule: a run ends when its metric has not improved for `stop.patience` evaluations.

Adversarial training peaks early; the checkpoint of the best evaluation is kept anyway.

    rule = StopRule(settings)
    rule.load(step.state.get("stop"))          # of a checkpoint, so that a resumed run ends alike
    values |= rule.note(evaluation, images)
    if rule.spent: print(rule.sentence)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from fasttrain.settings import RunSettings

__all__ = ["StopRule"]


class StopRule:
    """Counts evaluations since the best one.

    Attributes:
        best, images: score (the lower the better) and images seen of the best evaluation.
        since: evaluations after it.
    """

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings
        self.load(None)

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Continue where a checkpoint was; None: at the start."""
        state = state or {}
        best = state.get("best")
        self.best: float = math.inf if best is None else best
        self.images: int = state.get("images", 0)
        self.since: int = state.get("since", 0)
        self.how: list[Any] | None = state.get("how")

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint holds; None before the first evaluation."""
        if self.how is None:
            return None
        best = None if math.isinf(self.best) else self.best
        return {"best": best, "images": self.images, "since": self.since, "how": self.how}

    def note(self, evaluation: Mapping[str, Any], images: int) -> dict[str, float]:
        """Count an evaluation; returns values for the statistics. Scores of another metric or
        protocol are not comparable: the count starts again."""
        if self.settings.stop.patience is None:
            return {}
        how = json.loads(json.dumps([evaluation["metric"], evaluation["protocol"]]))
        if how != self.how:
            self.load({"how": how})
        if evaluation["score"] < self.best:
            self.best, self.images, self.since = evaluation["score"], images, 0
        else:
            self.since += 1
        values = {"since_best": float(self.since)}
        early = self.spent and images < self.settings.images
        return values | ({"stopped_early": 1.0} if early else {})

    @property
    def spent(self) -> bool:
        """Whether the run is to end."""
        patience = self.settings.stop.patience
        return patience is not None and self.since >= patience

    @property
    def sentence(self) -> str:
        """Why the run has ended."""
        metric = self.how[0] if self.how else self.settings.evaluate.metric
        line = f"{metric} has not improved for {self.since} evaluations"
        if math.isinf(self.best):
            return f"{line}; it was never finite"
        value = f"{abs(self.best):.4g}"
        return f"{line}; its best, {value}, is that of the checkpoint at {self.images:,} images"
