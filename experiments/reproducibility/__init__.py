"""Which features come back when an SAE is trained again. PROTOCOL.md says what is tested, and how."""
