"""The Postgres adapter of the store's port: the only place that knows asyncpg and SQL."""
