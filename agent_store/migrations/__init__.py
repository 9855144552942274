"""How alembic finds the migrations; the SQL itself is in agent_store/sql/migrations."""
