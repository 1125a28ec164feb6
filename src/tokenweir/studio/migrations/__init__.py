"""The Alembic branch ``studio``; docs/runs.md says how to add a revision."""
