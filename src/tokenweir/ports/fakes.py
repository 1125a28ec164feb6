"""Public fakes of the ports: small, honest adapters for tests and dry runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenweir.core.errors import EndpointError, UpstreamError
from tokenweir.core.events import Completed, Event, Started, Token
from tokenweir.core.requests import GenerateRequest, Json
from tokenweir.ports.backend import HttpRequest, HttpResponse, Identity


class WordTokenizer:
    """A tokenizer whose tokens are the words between single spaces; exact for text made of known words."""

    __slots__ = ("_ids", "_words")

    def __init__(self, words: Sequence[str]) -> None:
        self._words = tuple(words)
        self._ids = {word: index for index, word in enumerate(self._words)}

    @property
    def exact(self) -> bool:
        """Always true: the words are the vocabulary."""
        return True

    @property
    def hash(self) -> str | None:
        """No file, so no hash."""
        return None

    def encode(self, text: str) -> Sequence[int]:
        """Return one id per word; a word outside the vocabulary raises KeyError."""
        return [self._ids[word] for word in text.split(" ") if word]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the words joined by single spaces."""
        return " ".join(self._words[index] for index in ids)


class LineDecoder:
    """Decodes the fake backend's answer: every line is a token, the end of the body completes it."""

    __slots__ = ("_offset", "_rest", "_seq")

    def __init__(self) -> None:
        self._rest = b""
        self._offset = 0
        self._seq = 0

    def feed(self, data: bytes) -> Sequence[tuple[int, Event]]:
        """Return a token per completed line."""
        events: list[tuple[int, Event]] = []
        if self._seq == 0:
            events.append((self._offset, Started(seq=0)))
            self._seq = 1
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._offset += len(line) + 1
            events.append((self._offset, Token(seq=self._seq, text=line.decode(), count=1)))
            self._seq += 1
        return events

    def end(self) -> Sequence[tuple[int, Event]]:
        """Return the completion."""
        return [(self._offset, Completed(seq=self._seq, finish_reason="stop"))]


class LineBackend:
    """A backend whose prompt is the body and whose answer is one token per line."""

    __slots__ = ()

    @property
    def kind(self) -> str:
        """The name of this fake."""
        return "lines"

    def encode(self, request: GenerateRequest) -> HttpRequest:
        """Return a POST of the prompt as text."""
        prompt = request.prompt if isinstance(request.prompt, str) else " ".join(map(str, request.prompt))
        return HttpRequest(method="POST", path="/lines", body=prompt.encode())

    def decoder(self, request: GenerateRequest) -> LineDecoder:
        """Return a decoder of lines, whatever the request."""
        del request
        return LineDecoder()

    def error(self, response: HttpResponse) -> EndpointError:
        """Return the body as the message."""
        return UpstreamError(response.body.decode(errors="replace"), status=response.status)

    def health(self) -> HttpRequest:
        """Return GET /health."""
        return HttpRequest(method="GET", path="/health")

    def identity_probes(self) -> Sequence[HttpRequest]:
        """Return no probes."""
        return ()

    def identity(self, answers: Sequence[HttpResponse]) -> Identity:
        """Return an identity that knows nothing and says so."""
        del answers
        return Identity(missing={"commit": "a fake has none", "revision": "a fake has none"})

    def action(self, name: str, options: Mapping[str, Json]) -> HttpRequest | None:
        """Return nothing: the fake has no side doors."""
        del name, options
        return None
