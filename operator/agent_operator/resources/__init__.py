"""Pure builders of all that the operator makes for one agent, one module per kind, and their comparison with live ones."""
