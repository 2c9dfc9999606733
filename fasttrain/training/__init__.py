"""The algorithm: `finetune.train` and `pretrain.train`, with engines, objectives and the run."""
