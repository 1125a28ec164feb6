"""The embedded stores of the gateway: one SQLite file, written by one thread of one process."""
