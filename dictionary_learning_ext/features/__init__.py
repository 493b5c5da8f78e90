"""The features of a trained SAE."""
