"""The agent runtime: one process that serves one or several agents over HTTP, stateless over Postgres."""
