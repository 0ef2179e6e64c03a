"""Networks as values: a base, its traced graph, edits, a path, weights."""
