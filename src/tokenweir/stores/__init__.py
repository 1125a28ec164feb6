"""Adapters to databases and files; the scheme of a URL picks the adapter."""
