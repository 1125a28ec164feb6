"""The runtime's HTTP door: OpenAI's interface over raw ASGI, probes, metrics, and the loading of models."""
