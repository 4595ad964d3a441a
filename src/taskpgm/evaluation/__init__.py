"""Does it work: losses and answers, baselines, comparisons, predictions, other trainers and benchmarks."""
