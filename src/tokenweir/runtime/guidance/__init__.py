"""Answers that must match a schema, a pattern, a grammar or a list: checked in the server, enforced in the child."""
