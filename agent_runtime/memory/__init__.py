"""Memories: what an agent knows beyond a session, found again by words and by meaning."""
