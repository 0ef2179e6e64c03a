"""Compression: making a trained network smaller, step by step, to reach a goal."""
