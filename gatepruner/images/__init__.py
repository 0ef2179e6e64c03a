"""Images, with or without labels: reading, normalising and augmenting them."""
