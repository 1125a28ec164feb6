"""The load generator: measures a served model and proves its own accuracy."""
