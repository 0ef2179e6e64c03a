"""Which blocks go, and what is left without them."""
