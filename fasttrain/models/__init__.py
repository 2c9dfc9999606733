"""Networks, what of them trains, and every file that a model is read from or written to."""
