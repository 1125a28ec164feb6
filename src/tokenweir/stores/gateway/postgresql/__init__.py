"""Requests, reservations and the ledger in PostgreSQL, shared by any number of processes."""
