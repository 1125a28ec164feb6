"""Quota counters in Redis, shared by any number of gateways, and derived from the ledger."""
