"""What crosses gRPC: messages generated from ``proto``, their service, and the way to the core's types and back."""
