"""The speed model: what an iteration of a fine-tuning costs on a GPU, from counts alone."""
