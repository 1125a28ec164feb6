"""The control plane: what is known of runs, and how they compare."""
