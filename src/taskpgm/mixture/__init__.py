"""From affinities to a certified mixture: only NumPy and SciPy, nothing of rows or models."""
