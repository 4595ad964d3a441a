"""`python -m taskpgm`."""

from taskpgm.cli.main import main

main()
