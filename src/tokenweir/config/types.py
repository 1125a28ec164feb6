"""What tables of settings are made of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

from tokenweir.config.environment import read_environment
from tokenweir.core.errors import ConfigError, InputError
from tokenweir.core.units import parse_duration


class SettingsModel(BaseModel):
    """Base of every table of settings: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Secret:
    """Where a secret is to be found, never the secret itself.

    ``reference`` is ``env:NAME`` or ``file:PATH``. Nothing is read before :meth:`read`, and neither ``repr``
    nor an error message ever shows what was read.
    """

    __slots__ = ("reference",)

    def __init__(self, reference: str) -> None:
        self.reference = reference

    def __repr__(self) -> str:
        return f"Secret({self.reference!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other.reference == self.reference

    def __hash__(self) -> int:
        return hash(self.reference)

    def read(self) -> str:
        """Return the secret, without surrounding white space.

        Raises:
            ConfigError: the variable is not set, the file cannot be read, or what is there is empty.
        """
        scheme, _, place = self.reference.partition(":")
        if scheme == "env":
            value = read_environment().get(place, "").strip()
            if not value:
                raise ConfigError(
                    f"the environment variable {place!r} that holds a secret is not set",
                    mend=f"export {place}",
                )
            return value
        try:
            value = Path(place).expanduser().read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError(
                f"the secret's file {place!r} cannot be read: {error.strerror}",
                mend="make it readable or mend the path",
            ) from error
        if not value:
            raise ConfigError(f"the secret's file {place!r} is empty", mend="write the secret into it")
        return value


def _to_secret(value: object) -> object:
    if isinstance(value, Secret):
        return value
    if isinstance(value, str) and re.fullmatch(r"(env|file):.+", value, flags=re.DOTALL):
        return Secret(value)
    reason = "a secret is named, not written down: use 'env:NAME' or 'file:PATH'"
    raise ValueError(reason)


SecretRef = Annotated[Secret, BeforeValidator(_to_secret)]
"""The type of a setting that names a secret."""


def _to_duration_ns(value: object) -> object:
    text = value if isinstance(value, str) else f"{value}"
    try:
        return parse_duration(text)
    except InputError as error:
        reason = str(error)
        raise ValueError(reason) from error


DurationNs = Annotated[int, BeforeValidator(_to_duration_ns)]
"""The type of a setting that is a duration: written with its unit (``"1.5s"``), held in nanoseconds."""
