"""How a module is trained: one process of plain PyTorch, or DeepSpeed's ZeRO."""
