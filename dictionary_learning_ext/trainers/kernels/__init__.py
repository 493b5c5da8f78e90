"""One fast training step, taken apart: everything that exists for speed alone."""
