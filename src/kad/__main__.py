"""`python -m kad` is the command `kad`."""

from kad.cli.main import main

main()
