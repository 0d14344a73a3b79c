"""The host loop: which trials run, how far, and what is written down."""
