"""Frozen pretrained networks that discriminators and metrics look through, and their weights."""
