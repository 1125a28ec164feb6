"""Multipart forms, part by part as they come: nothing of a file is gathered."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final, cast

import msgspec
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from tokenweir.asgi.problems import ContentTypeError
from tokenweir.core.errors import ParameterError

_FIELD_BYTES: Final = 4096
_PARTS: Final = 16

Take = Callable[[bytes], Awaitable[None]]


class Form(msgspec.Struct, kw_only=True):
    """What a form said beside the file: its fields, and the file's name; ``None``: there was no file."""

    fields: dict[str, str] = {}
    file_name: str | None = None


class _Part(msgspec.Struct, kw_only=True):
    name: str
    file_name: str | None
    data: bytearray


def boundary_of(content_type: bytes | None) -> bytes:
    """Return the boundary of a form. Raises ContentTypeError."""
    kind, options = parse_options_header((content_type or b"").decode("latin-1"))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise ContentTypeError(
            f"the content type is {kind.decode('latin-1')!r}", mend="send multipart/form-data with a boundary"
        )
    return boundary


class FormReader:
    """Reads a form whose file is the part ``file``; what that holds goes to ``take`` as it comes."""

    def __init__(self, boundary: bytes, take: Take) -> None:
        self._take = take
        self._form = Form()
        self._headers: dict[bytes, bytes] = {}
        self._field, self._value = bytearray(), bytearray()
        self._part: _Part | None = None
        self._contents: list[bytes] = []
        self._parts = 0
        self._whole = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._field.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._header,
                "on_headers_finished": self._named,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._finish,
            },
        )

    async def read(self, pieces: AsyncIterator[bytes]) -> Form:
        """Read all of it. Raises ParameterError for what is no form, or not this one."""
        async for piece in pieces:
            try:
                self._parser.write(piece)
            except FormParserError as error:
                raise _malformed(str(error)) from error
            contents, self._contents = self._contents, []
            for data in contents:
                await self._take(data)
        if not self._whole:
            raise _malformed("it ends before its last boundary")
        return self._form

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > _PARTS:
            raise _malformed(f"it has more than {_PARTS} parts")
        self._headers.clear()

    def _header(self) -> None:
        self._headers[bytes(self._field).lower()] = bytes(self._value)
        self._field.clear()
        self._value.clear()

    def _named(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b"").decode("latin-1"))
        name = _text(options.get(b"name", b""))
        file_name = options.get(b"filename")
        if not name:
            raise _malformed("a part has no name")
        if name == "file":
            if self._form.file_name is not None:
                raise _malformed("it has two files")
            self._form.file_name = _text(file_name or b"") or "file"
        elif name in self._form.fields:
            raise _malformed(f"it has {name[:80]!r} twice")
        self._part = _Part(name=name, file_name=self._form.file_name, data=bytearray())

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = cast("_Part", self._part)
        if part.name == "file":
            self._contents.append(data[start:end])
            return
        part.data += data[start:end]
        if len(part.data) > _FIELD_BYTES:
            raise ParameterError(
                f"{part.name[:80]!r} is longer than {_FIELD_BYTES} bytes",
                param=part.name[:80],
                mend="send the contents as the part file",
            )

    def _end(self) -> None:
        part = cast("_Part", self._part)
        if part.name != "file":
            self._form.fields[part.name] = _text(bytes(part.data))

    def _finish(self) -> None:
        self._whole = True


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _malformed(why: str) -> ParameterError:
    return ParameterError(
        f"the form cannot be read: {why}",
        param="body",
        reason="invalid_form",
        mend="send multipart/form-data",
    )
