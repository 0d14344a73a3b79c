"""Scripts that reproduce figures: one module a figure."""
