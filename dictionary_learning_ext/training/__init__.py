"""Planning a run, the training loop, one SAE in it, logs, resuming, several processes."""
