"""Runs that are killed, long, large or driven by an agent."""
