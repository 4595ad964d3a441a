"""No content: mosaicml-streaming imports torchvision for images, which has no build for the torch pinned here."""
