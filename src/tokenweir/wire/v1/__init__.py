"""Version 1 of the interface, ``proto/tokenweir/v1``."""
