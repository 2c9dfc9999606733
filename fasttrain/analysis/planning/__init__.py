"""`fasttrain plan`: what a recipe needs on so many GPUs, from its settings alone.

`sizes` counts parameters, `state` what each process holds of them at each ZeRO stage, `activations`
what a backward pass needs, `traffic` what is sent, `plan` puts it together and prints it.
"""

from fasttrain.analysis.planning.make import make_plan
from fasttrain.analysis.planning.plan import Plan

__all__ = ["Plan", "make_plan"]
