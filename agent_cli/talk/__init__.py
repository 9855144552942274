"""An agent's REST API from a terminal: one message, a conversation, reading what is kept."""
