"""How fast a step and a whole run are."""
