"""Settings and their checks. Nothing here imports torch."""
