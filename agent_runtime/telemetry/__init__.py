"""What the runtime tells people: logs, Prometheus metrics, rows in Postgres; all of it without secrets."""
