"""What happens around a turn beside the models: memories for the prompt, and users' own code."""
