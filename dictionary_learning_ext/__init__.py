"""Variational TopK sparse autoencoders on top of dictionary_learning."""
