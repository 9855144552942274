"""What the model is given of a long conversation: its newest part, and a summary of what came before."""
