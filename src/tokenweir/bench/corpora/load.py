"""Finding a corpus by name or path and reading its format."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

import msgspec

from tokenweir.bench.corpora.corpus import Corpus
from tokenweir.bench.corpora.lines import CorpusLine, decode_text, read_bytes, read_json_lines, to_sample
from tokenweir.bench.corpora.sharegpt import read_sharegpt
from tokenweir.bench.corpora.shipped import SHIPPED, shipped_samples
from tokenweir.core.corpus import Sample
from tokenweir.core.errors import CorpusError


def load_corpus(name_or_path: str) -> Corpus:
    """Return the shipped corpus of that name, or the corpus in that file.

    The format follows from the file's ending: ``.txt`` has one prompt per line, ``.jsonl`` prompts or
    conversations, ``.json`` ShareGPT. Raises CorpusError with file, line and reason.
    """
    if name_or_path in SHIPPED:
        return Corpus(name_or_path, shipped_samples(name_or_path))
    path = Path(name_or_path)
    if not path.exists():
        raise _missing(name_or_path)
    match path.suffix.lower():
        case ".txt":
            samples = _read_text(path)
        case ".jsonl" | ".ndjson":
            samples = tuple(
                to_sample(path, number, line)
                for number, line in read_json_lines(path, read_bytes(path), CorpusLine)
            )
        case ".json":
            return _filled(path, read_sharegpt(path), sized_by_replies=True)
        case other:
            raise CorpusError(
                f"{path}: unknown ending {other!r}", mend="a corpus is .txt, .jsonl or ShareGPT's .json"
            )
    return _filled(path, samples)


def _filled(path: Path, samples: tuple[Sample, ...], *, sized_by_replies: bool = False) -> Corpus:
    if not samples:
        raise CorpusError(f"{path} holds no sample", mend="give it at least one prompt")
    return Corpus(path.name, samples, sized_by_replies=sized_by_replies)


def _read_text(path: Path) -> tuple[Sample, ...]:
    lines = decode_text(path, read_bytes(path)).split("\n")
    prompts = ((number, line.strip()) for number, line in enumerate(lines, start=1))
    return tuple(Sample(id=str(number), prompt=prompt) for number, prompt in prompts if prompt)


def _missing(name: str) -> CorpusError:
    near = get_close_matches(name, SHIPPED, n=1)
    message = f"--corpus {name!r} is neither a file nor a shipped corpus"
    return CorpusError(
        message, mend=f"did you mean {near[0]}?" if near else f"shipped is {', '.join(SHIPPED)}"
    )


def lines_of(samples: tuple[Sample, ...]) -> bytes:
    """Return ``samples`` as a JSONL corpus, one per line, that :func:`load_corpus` reads back."""
    encoder = msgspec.json.Encoder()
    return b"".join(encoder.encode(sample) + b"\n" for sample in samples)
