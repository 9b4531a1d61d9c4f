"""`python -m mma_adapter` is the `mma-adapter` command."""

from .cli import main

main()
