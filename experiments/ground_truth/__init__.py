"""SAEs against known features."""
