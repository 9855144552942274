"""Adapters that ask others how agents are: the runtimes themselves, and Postgres."""
