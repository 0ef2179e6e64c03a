"""Labelled images: reading, normalising and augmenting them."""
