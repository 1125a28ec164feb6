"""The gateway's branch of the schema."""
