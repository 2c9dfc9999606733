"""Distances between generated and real images: features, metrics, and the run's own table.

Functions that depend on models and runs: `evaluate_model` in `fasttrain.evaluation.measure`,
`Evaluator`, for the loop, in `fasttrain.evaluation.evaluate`, `evaluate_run` in
`fasttrain.evaluation.summary`.
"""

from fasttrain.evaluation.extractors import Extractor, extract, load_extractor
from fasttrain.evaluation.metrics.distances import (
    evaluate_features,
    frechet_distance,
    frechet_distance_pca,
    frechet_from_statistics,
    kernel_distance,
)
from fasttrain.evaluation.metrics.neighbours import precision_recall

__all__ = [
    "Extractor",
    "evaluate_features",
    "extract",
    "frechet_distance",
    "frechet_distance_pca",
    "frechet_from_statistics",
    "kernel_distance",
    "load_extractor",
    "precision_recall",
]
