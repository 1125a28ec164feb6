"""The control plane: the index of runs and their comparison."""
