"""Task mixtures for fine-tuning language models, measured with probes."""
