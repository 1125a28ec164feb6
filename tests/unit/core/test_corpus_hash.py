from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from tokenweir.core.canonical import canonical_json
from tokenweir.core.corpus import Sample, corpus_hash, message_text, sample_hash
from tokenweir.core.requests import Message

_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_samples = st.lists(
    st.builds(Sample, id=_texts, prompt=_texts, max_tokens=st.none() | st.integers(1, 99)), max_size=6
)


def test_sample_hash_is_of_its_json_without_defaults() -> None:
    sample = Sample(id="a", messages=(Message(role="user", content="hi"),), max_tokens=3)
    content = {"id": "a", "max_tokens": 3, "messages": [{"role": "user", "content": "hi"}]}
    assert sample_hash(sample) == hashlib.sha256(canonical_json(content)).hexdigest()
    plain = hashlib.sha256(b'{"id":"b","prompt":"x"}').hexdigest()
    assert sample_hash(Sample(id="b", prompt="x")) == plain


@given(_samples)
def test_corpus_hash_is_over_the_sample_hashes_in_order(samples: list[Sample]) -> None:
    joined = b"".join(bytes.fromhex(sample_hash(sample)) for sample in samples)
    assert corpus_hash(samples) == hashlib.sha256(joined).hexdigest()


@given(_samples)
def test_order_matters(samples: list[Sample]) -> None:
    turned = samples[::-1]
    assert (corpus_hash(samples) == corpus_hash(turned)) == (samples == turned)


def test_turns_and_text() -> None:
    asked = Sample(
        id="a",
        messages=(
            Message(role="system", content="s"),
            Message(
                role="user", content=({"type": "text", "text": "q"}, {"type": "image_url", "image_url": "u"})
            ),
            Message(role="assistant", content=None),
            Message(role="user", content="r"),
        ),
    )
    assert asked.turns == 2
    assert asked.text == "s\nq\n\nr"
    assert message_text(asked.messages[1]) == "q"
    assert Sample(id="b", prompt="p").turns == 1
    assert Sample(id="b", prompt="p").text == "p"
