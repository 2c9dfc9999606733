"""Formats of model files that are read, without executing anything in them."""
