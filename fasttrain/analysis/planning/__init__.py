"""`fasttrain plan`: what a recipe needs on N GPUs, computed from its settings.

`sizes` counts parameters, `state` the part of them on each process at each ZeRO stage,
`activations` the memory for a backward pass, `traffic` the bytes sent; `make` combines them, `plan`
prints them.
"""

from fasttrain.analysis.planning.make import make_plan
from fasttrain.analysis.planning.plan import Plan

__all__ = ["Plan", "make_plan"]
