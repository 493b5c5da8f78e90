"""An SAE's code of a text: its nonzero activations, encoded once and read by everything."""
