"""Studies and measurements: `python -m experiments` lists them."""
