"""What is on disk: one SAE, one folder."""
