"""wandb sweep files run on this machine, and their results."""
