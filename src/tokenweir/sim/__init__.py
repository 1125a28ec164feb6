"""The simulator: a serving engine's double in one process, with its own epoll loop and timing wheel."""
