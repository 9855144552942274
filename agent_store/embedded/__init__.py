"""A real Postgres of one's own, for `abide dev` and for tests: no installation, no cluster, no privileges."""

from agent_store.embedded.server import EmbeddedPostgres, EmbeddedPostgresError

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError"]
