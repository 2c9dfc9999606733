"""The `fasttrain` command; its entry point is `fasttrain.cli.app`."""
