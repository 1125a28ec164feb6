"""The runtime's gRPC door: the service of ``proto/tokenweir/v1/inference.proto`` over the engine's facade."""
