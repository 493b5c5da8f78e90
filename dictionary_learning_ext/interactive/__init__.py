"""What people do with a trained SAE in Python: look at its features, steer with them, compare two."""
