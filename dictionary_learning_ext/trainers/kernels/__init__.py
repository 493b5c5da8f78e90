"""One fast training step, in reading order: step, encode, select, products; compiled, row_kernels."""
