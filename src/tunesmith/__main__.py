"""`python -m tunesmith` is the same as `tunesmith`."""

from tunesmith.cli import main

main()
