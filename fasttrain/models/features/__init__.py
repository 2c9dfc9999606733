"""Frozen pretrained feature networks of discriminators and metrics, and their weights."""
