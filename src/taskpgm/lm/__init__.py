"""The base model: its files, the model, batches and memory, packed rows, low-rank layers."""
