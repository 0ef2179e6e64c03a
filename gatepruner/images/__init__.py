"""Labelled images: read, normalised, seen as training sees them."""
