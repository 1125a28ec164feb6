"""The last calibration of this machine's client, kept beside the user's other data."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
import platformdirs

from tokenweir.bench.records.model import Calibration

FILE: Final = "calibration.json"


def calibration_path() -> Path:
    """Return where the calibration of this machine is kept."""
    return platformdirs.user_data_path("tokenweir") / FILE


def load_calibration(path: Path | None = None) -> Calibration | None:
    """Return the last calibration, or ``None`` when there is none that this version can read."""
    try:
        return msgspec.json.decode((path or calibration_path()).read_bytes(), type=Calibration)
    except (OSError, msgspec.DecodeError):
        return None


def save_calibration(calibration: Calibration, path: Path | None = None) -> Path:
    """Keep a calibration as the last one, and return where."""
    place = path or calibration_path()
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = place.with_suffix(".tmp")
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(calibration)) + b"\n")
    draft.replace(place)
    return place
