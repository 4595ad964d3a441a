"""One run directory: its stages in order, what each depends on, and what is made again."""
