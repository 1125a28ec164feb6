"""The vocabulary every other package speaks: pure, no I/O, nothing third-party beyond msgspec and numpy."""
