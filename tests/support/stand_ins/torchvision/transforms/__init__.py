"""Imported by mosaicml-streaming."""
