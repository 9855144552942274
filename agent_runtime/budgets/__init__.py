"""Budgets of an agent and its users: what may be used in a day, reserved in slices and accounted for afterwards."""
