"""Keeping the engine's process alive: its lifecycle, the circuit breaker around it, and what follows a restart."""
