"""`python -m fasttrain` is the `fasttrain` command, so that any launcher can run it:
`deepspeed --module fasttrain finetune RECIPE`."""

from fasttrain.cli.app import main

if __name__ == "__main__":
    main()
