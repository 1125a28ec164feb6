"""Requests that are relayed at once: authenticate, estimate, reserve, relay, settle."""
