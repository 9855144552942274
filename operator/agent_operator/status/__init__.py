"""What status says: pure functions from what was observed to conditions, fields and messages."""
