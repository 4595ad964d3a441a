"""Imported by mosaicml-streaming."""


class VisionDataset:
    """Base of its sets of images."""
