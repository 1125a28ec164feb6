"""The branch of the schema that belongs to access."""
