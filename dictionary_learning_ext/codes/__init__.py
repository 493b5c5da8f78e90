"""What an SAE says of a text: its nonzero activations, encoded once and read by everything."""
