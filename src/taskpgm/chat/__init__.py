"""Rows as the model reads them: chat template, token ids, mask of what is learned."""
