"""Engines that train a module: one process of plain PyTorch, or DeepSpeed's ZeRO."""
