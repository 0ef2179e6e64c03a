"""Ranking blocks, choosing how many to remove, and removing them."""
