"""Serves a model on this machine: one supervised child process per device, scheduled, batched, over HTTP and gRPC."""
