"""The rows of a run: split, on disk, drawn for a mixture."""
