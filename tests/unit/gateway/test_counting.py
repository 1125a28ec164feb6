"""What is counted by a model's tokenizer, beside the library itself."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.factories.tokenizers import write_tokenizer
from tokenizers import Tokenizer, models

from tokenweir.backends.tokenizer_file import FileTokenizer
from tokenweir.gateway.direct.body import RequestBody, read
from tokenweir.gateway.metering.counting import MOST, PER_ANSWER, PER_MESSAGE, Output, Tally, prompt_count
from tokenweir.gateway.metering.usage import TokenCount

CHAT = b"/v1/chat/completions"
ASKED = RequestBody(model="m", n=2)
TEXTS = st.lists(st.text(max_size=12), max_size=8)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("counting"))


@pytest.fixture(scope="module")
def tokenizer(file: Path) -> FileTokenizer:
    return FileTokenizer(file)


@pytest.fixture(scope="module")
def library(file: Path) -> Tokenizer:
    library = Tokenizer.from_file(str(file))
    library.no_padding()
    library.no_truncation()
    return library


def counted(library: Tokenizer, *texts: str) -> int:
    return sum(len(library.encode(text, add_special_tokens=False).ids) for text in texts)


def event(index: int, delta: dict[str, object]) -> bytes:
    chunk = {"id": "a", "choices": [{"index": index, "delta": delta}]}
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


@given(data=st.data(), said=TEXTS, thought=TEXTS, other=TEXTS, arguments=TEXTS)
def test_a_stream_counts_as_its_texts_do_however_it_is_cut(
    *,
    tokenizer: FileTokenizer,
    library: Tokenizer,
    data: st.DataObject,
    said: list[str],
    thought: list[str],
    other: list[str],
    arguments: list[str],
) -> None:
    rows = [
        [event(0, {"content": piece}) for piece in said],
        [event(0, {"reasoning_content": piece}) for piece in thought],
        [event(1, {"content": piece}) for piece in other],
        [event(1, {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]}) for piece in arguments],
    ]
    events = [one for row in itertools.zip_longest(*rows) for one in row if one is not None]
    output = Output(CHAT, ASKED, streamed=True)
    while events:
        taken = data.draw(st.integers(1, len(events)))
        output.keep(b"".join(events[:taken]))
        events = events[taken:]
        if data.draw(st.booleans()):
            output.tokens(tokenizer)
    texts = ["".join(pieces) for pieces in (said, thought, other, arguments)]
    assert output.tokens(tokenizer) == counted(library, *texts)


@given(texts=st.lists(st.text(max_size=40), min_size=1, max_size=5))
def test_prompts_count_as_their_texts_do(
    *, tokenizer: FileTokenizer, library: Tokenizer, texts: list[str]
) -> None:
    turns: list[object] = [{"role": "user", "content": text} for text in texts]
    parts = [{"role": "user", "content": [{"type": "text", "text": text} for text in texts]}]
    for messages in (turns, parts):
        body = read(msgspec.json.encode({"model": "m", "messages": messages}))
        around = PER_MESSAGE * len(messages) + PER_ANSWER
        assert prompt_count(tokenizer, body) == counted(library, *texts) + around
    for name in ("prompt", "input"):
        body = read(msgspec.json.encode({"model": "m", name: texts}))
        assert prompt_count(tokenizer, body) == max(1, counted(library, *texts))


def test_numbers_of_tokens_count_themselves(tokenizer: FileTokenizer) -> None:
    for given_, count in (([5, 6, 7], 3), ([[5], [6, 7]], 3)):
        body = read(msgspec.json.encode({"model": "m", "prompt": given_}))
        assert prompt_count(tokenizer, body) == count
    assert prompt_count(tokenizer, read(b'{"model":"m","prompt":{"a":1}}')) is None
    assert prompt_count(tokenizer, read(b'{"model":"m","messages":[{"content":[{"type":"image"}]}]}')) is None


def test_what_is_too_long_is_not_counted_and_not_kept(tokenizer: FileTokenizer) -> None:
    streamed = Output(CHAT, ASKED, streamed=True)
    piece = event(0, {"content": "river " * 10_000})
    for _ in range(MOST // 60_000 + 2):
        streamed.keep(piece)
    whole = Output(CHAT, ASKED, streamed=False)
    whole.keep(b" " * (MOST + 1))
    prompt = read(msgspec.json.encode({"model": "m", "prompt": "x" * MOST}))
    assert streamed.lost
    assert whole.lost
    assert (streamed.tokens(tokenizer), whole.tokens(tokenizer)) == (None, None)
    assert prompt_count(tokenizer, prompt) is None


def test_what_is_no_answer_and_what_a_tokenizer_refuses_is_not_counted(
    tokenizer: FileTokenizer, tmp_path: Path
) -> None:
    broken = Output(CHAT, ASKED, streamed=False)
    broken.keep(b"<html>")
    assert broken.tokens(tokenizer) is None
    # It knows one word, and nothing that stands for all others.
    Tokenizer(models.WordLevel({"weir": 0}, unk_token="?")).save(str(tmp_path / "tokenizer.json"))
    narrow = FileTokenizer(tmp_path / "tokenizer.json")
    assert prompt_count(narrow, read(b'{"model":"m","prompt":"weir"}')) == 1
    assert prompt_count(narrow, read(b'{"model":"m","prompt":"river"}')) is None


def test_a_long_answer_whose_caller_leaves_is_counted_once(
    tokenizer: FileTokenizer, library: Tokenizer
) -> None:
    text = "How deep is the river at the weir? " * 20_000
    answer = msgspec.json.encode({"id": "a", "choices": [{"index": 0, "message": {"content": text}}]})
    tally = Tally(tokenizer, 11)

    async def leave() -> TokenCount | None:
        async with asyncio.TaskGroup() as group:
            waiting = group.create_task(tally.whole(CHAT, ASKED, answer))
            await asyncio.sleep(0)
            waiting.cancel()
        assert waiting.cancelled()
        found = tally.count()
        assert isinstance(found, asyncio.Future)
        return await found

    with asyncio.Runner() as runner:
        count = runner.run(leave())
    assert count == TokenCount(input_tokens=11, output_tokens=counted(library, text))
