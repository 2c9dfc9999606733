"""Distances between sets of features: pure functions of tensors."""
