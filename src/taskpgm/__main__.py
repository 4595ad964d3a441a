"""`python -m taskpgm`."""

from taskpgm.cli import main

main()
