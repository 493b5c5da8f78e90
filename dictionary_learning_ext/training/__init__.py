"""The training loop, one SAE in it, and its logs."""
