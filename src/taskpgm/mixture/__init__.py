"""From affinities to a certified mixture: NumPy and SciPy alone, nothing of rows or models."""
