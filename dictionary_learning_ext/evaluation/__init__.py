"""What an SAE is worth on held-out text."""
