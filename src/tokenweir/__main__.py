"""``python -m tokenweir`` is ``weir``."""

from __future__ import annotations

from tokenweir.cli.main import main

if __name__ == "__main__":
    main()
