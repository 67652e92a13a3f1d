"""`python -m tools.audit`: judge directions, steering vectors and SAE features from files."""
