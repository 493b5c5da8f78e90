"""Architectures: one file each, model and trainer together."""
