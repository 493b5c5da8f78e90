"""The search for a variational SAE that is worth using, and what it is compared with."""
