"""wandb sweep files run on this machine."""
