"""`python -m fasttrain_data` is the `fasttrain-data` command."""

from fasttrain_data.cli import main

if __name__ == "__main__":
    main()
