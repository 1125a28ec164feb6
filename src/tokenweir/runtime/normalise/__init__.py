"""What the doors' bodies mean: every spelling of every option, in one place, into the core's own types."""
