"""`python -m tunesmith.cli` is the same as `tunesmith`."""

from tunesmith.cli import main

main()
