"""How far generated images are from real ones: features, distances, and the run's own numbers.

`Evaluator` and `evaluate_run`, which know of runs and settings, are in
`fasttrain.evaluation.evaluate` and `fasttrain.evaluation.summary`.
"""

from fasttrain.evaluation.distances import (
    evaluate_features,
    frechet_distance,
    frechet_distance_pca,
    kernel_distance,
)
from fasttrain.evaluation.extractors import Extractor, extract, load_extractor

__all__ = [
    "Extractor",
    "evaluate_features",
    "extract",
    "frechet_distance",
    "frechet_distance_pca",
    "kernel_distance",
    "load_extractor",
]
