"""Pure builders of all that the operator makes for an agent, one module per kind, and the comparison with live ones."""
