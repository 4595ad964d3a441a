"""One self-contained page from a finished run: its figures and the sentences that say what they show."""

from taskpgm.report import plot as plot
