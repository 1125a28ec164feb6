"""Giving less before giving nothing: a ladder of measures under load, climbed and left with hysteresis."""
