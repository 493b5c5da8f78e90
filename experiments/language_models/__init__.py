"""The language models and the text that experiments use."""
