"""The algorithm: `finetune.train` and `pretrain.train`, and what they need."""
