"""The search for a variational SAE that is worth using."""
