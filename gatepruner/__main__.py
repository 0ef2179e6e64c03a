"""`python -m gatepruner`."""

from gatepruner.cli import main

main()
