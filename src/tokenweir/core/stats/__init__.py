"""Statistics in numpy: percentiles, intervals and tests. Pure."""
