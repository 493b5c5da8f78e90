"""The compiled training step in float32 on CPUs, in reading order: step, encode, select, products; compiled, row_kernels."""
