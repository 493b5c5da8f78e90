"""Explanations of features by a language model behind an endpoint, and their scores."""
