"""Rows: from files to conversations, to tokens and masks, to a pool that is split, to a training set."""
