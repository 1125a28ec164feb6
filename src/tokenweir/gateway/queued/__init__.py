"""Requests that are accepted, queued, worked on, read by whoever comes back, and filed."""
