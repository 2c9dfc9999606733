"""Models for others: one file of weights, a diffusers pipeline, or ONNX, each with a model card.

`fasttrain.models.export.export` writes them. The modules `plain_*` and `diffusers_part` are what a
pipeline's file consists of; the ONNX function is made of the same.
"""

from fasttrain.models.export.export import FORMATS, Format, export_model

__all__ = ["FORMATS", "Format", "export_model"]
