"""Compression: from a trained network and a goal to a smaller network, step by step."""
