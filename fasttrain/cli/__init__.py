"""The `fasttrain` command; `fasttrain.cli.app` is the way in."""
