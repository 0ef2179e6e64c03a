"""Files of weights: written whole or not at all, read without ever running code."""
