"""Batches that the gateway keeps: taken on as one file, worked on when there is room, told line by line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Literal, TypeAlias, cast
from urllib.parse import quote

import msgspec

from tokenweir.client.plans import Planner, encoded, read_answer
from tokenweir.client.steps import Plan, Rest
from tokenweir.client.trials import Trials
from tokenweir.core.errors import ProtocolError
from tokenweir.core.ids import new_id

BatchEndpoint: TypeAlias = Literal[
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"
]
_LOOK_NS: Final = 200_000_000
_LOOK_MOST_NS: Final = 5_000_000_000
_GOOD: Final = range(200, 300)


class RequestCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How many requests of a batch there are, were answered, and failed."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class BatchProblem(msgspec.Struct, frozen=True, kw_only=True):
    """Why a batch failed; ``line`` is counted from 1."""

    code: str = ""
    message: str = ""
    line: int | None = None


class _Problems(msgspec.Struct, frozen=True):
    data: tuple[BatchProblem, ...] = ()


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """How a batch stands. ``status`` is OpenAI's."""

    id: str
    status: str
    endpoint: str
    request_counts: RequestCounts = RequestCounts()
    output_file_id: str | None = None
    error_file_id: str | None = None
    metadata: dict[str, str] | None = None
    errors: _Problems | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in {"completed", "failed", "expired", "cancelled"}

    @property
    def problems(self) -> tuple[BatchProblem, ...]:
        """Why it failed, line by line."""
        return () if self.errors is None else self.errors.data


class _Response(msgspec.Struct, frozen=True):
    status_code: int
    body: dict[str, Any]


class _Problem(msgspec.Struct, frozen=True):
    message: str = ""
    code: str = ""


class _Line(msgspec.Struct, frozen=True):
    custom_id: str
    response: _Response | None = None
    error: _Problem | None = None


class BatchResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one request of a batch.

    ``index`` is its place among the bodies, ``status`` and ``body`` are those of the answer that it would have had
    alone; ``status`` 0 is one that was not asked, and ``reason`` says why, or what failed.
    """

    index: int
    status: int
    body: dict[str, Any]
    reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether it was answered."""
        return self.status in _GOOD


class _File(msgspec.Struct, frozen=True):
    id: str


_read_file = msgspec.json.Decoder(_File).decode
_read_batch = msgspec.json.Decoder(Batch).decode
_read_line = msgspec.json.Decoder(_Line).decode


class BatchPlanner(Planner):
    """Makes plans for batches, too."""

    def submit_batch(
        self,
        bodies: Iterable[Mapping[str, object]],
        endpoint: BatchEndpoint,
        *,
        metadata: Mapping[str, str] | None,
        key: str | None,
    ) -> Plan[Batch]:
        """Have bodies taken on as a batch, once. Raises InputError."""
        name = key if key is not None else new_id("idem")
        lines = [
            encoded({"custom_id": str(index), "method": "POST", "url": endpoint, "body": dict(body)})
            for index, body in enumerate(bodies)
        ]
        kind, form = _form(b"".join(line + b"\n" for line in lines))
        question = self._question("POST", "/v1/files", headers=self._once(f"{name}-file", kind), body=form)
        file = read_answer(_read_file, (yield from self._ask(question, self._trials())))
        asked = {
            "input_file_id": file.id,
            "endpoint": endpoint,
            "completion_window": "24h",
            **({} if metadata is None else {"metadata": dict(metadata)}),
        }
        headers = self._once(f"{name}-batch", "application/json")
        question = self._question("POST", "/v1/batches", headers=headers, body=encoded(asked))
        return read_answer(_read_batch, (yield from self._ask(question, self._trials())))

    def batch_status(self, name: str, trials: Trials | None = None) -> Plan[Batch]:
        """Ask how a batch stands."""
        question = self._question("GET", f"/v1/batches/{quote(name, safe='')}")
        return read_answer(_read_batch, (yield from self._ask(question, trials or self._trials())))

    def cancel_batch(self, name: str) -> Plan[Batch]:
        """Have a batch stopped."""
        question = self._question("POST", f"/v1/batches/{quote(name, safe='')}/cancel")
        return read_answer(_read_batch, (yield from self._ask(question, self._trials())))

    def wait_batch(self, name: str, timeout_ns: int | None) -> Plan[Batch]:
        """Look at a batch until it has ended."""
        trials = self._trials(self._deadline(timeout_ns))
        rest_ns = _LOOK_NS
        while not (told := (yield from self.batch_status(name, trials))).ended:
            yield Rest(trials.limit(rest_ns))
            rest_ns = min(_LOOK_MOST_NS, 2 * rest_ns)
        return told

    def results(self, name: str) -> Plan[list[BatchResult]]:
        """Fetch what became of a batch's requests, in the order of the bodies."""
        told = yield from self.batch_status(name)
        found: list[BatchResult] = []
        for file in (told.output_file_id, told.error_file_id):
            if file is not None:
                question = self._question("GET", f"/v1/files/{quote(file, safe='')}/content")
                answer = yield from self._ask(question, self._trials())
                found.extend(_results(answer.body))
        return sorted(found, key=lambda result: result.index)


def batch_name(batch: str | Batch) -> str:
    """Return the ``batch_…`` of a batch, however it is named."""
    return batch if isinstance(batch, str) else batch.id


def _results(lines: bytes) -> Iterator[BatchResult]:
    for line in lines.splitlines():
        try:
            told = _read_line(line)
            index = int(told.custom_id)
        except (msgspec.MsgspecError, UnicodeDecodeError, ValueError) as error:
            raise ProtocolError(
                f"a line of the batch's file cannot be read: {error}",
                mend="results are read of batches that submit_batch has made",
            ) from error
        answer = told.response
        reason = "" if told.error is None else told.error.message
        if answer is not None and answer.status_code not in _GOOD:
            error = answer.body.get("error")
            reason = (
                str(cast("dict[str, Any]", error).get("message", "")) if isinstance(error, dict) else reason
            )
        yield BatchResult(
            index=index,
            status=0 if answer is None else answer.status_code,
            body={} if answer is None else answer.body,
            reason=reason,
        )


def _form(data: bytes) -> tuple[str, bytes]:
    """Return type and body of the form that a file for a batch is sent in."""
    # Random, so that no line can hold it.
    border = new_id("form")
    head = (
        f'--{border}\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        f'--{border}\r\ncontent-disposition: form-data; name="file"; filename="batch.jsonl"\r\n'
        "content-type: application/jsonl\r\n\r\n"
    )
    return f"multipart/form-data; boundary={border}", head.encode() + data + f"\r\n--{border}--\r\n".encode()
