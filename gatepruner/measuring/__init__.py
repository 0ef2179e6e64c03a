"""Measuring networks: accuracy, parameters, MACs, latency, and batch-norm statistics."""
