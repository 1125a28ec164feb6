"""The door before model servers: keys, exact quotas, direct, queued, streamed and resumable requests."""
