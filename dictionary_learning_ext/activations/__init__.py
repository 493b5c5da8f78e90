"""Text, tokens, and the language model's activations."""
