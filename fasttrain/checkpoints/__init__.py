"""The files of a run: checkpoints, settings, base model, statistics, lock."""
