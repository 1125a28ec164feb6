"""What the stores report; lines go where ``tokenweir.telemetry.logs`` sends those of the process."""

from __future__ import annotations

from typing import Final, cast

import structlog

LOG: Final = cast("structlog.stdlib.BoundLogger", structlog.get_logger("tokenweir.stores"))
