"""Batches: files of requests that are worked through in the background, each line once."""
