"""What was computed for prompts and answers, kept for those that begin alike; on disk too, where there is a place.

Files are written when the model is closed, and read when it is loaded again: a model of the same revision only.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from tokenweir.runtime.engines.mlx import framework
from tokenweir.runtime.engines.mlx.arrays import begin
from tokenweir.runtime.engines.mlx.framework import Cache, Model
from tokenweir.runtime.engines.mlx.prefixes import PrefixTrie
from tokenweir.runtime.models.artifacts import ArtifactCache

LEAST: Final = 64
"""Shorter sequences are computed faster than they are looked after."""

_TOKENS: Final = "tokens"
_FILES: Final = 64


class Beginning(NamedTuple):
    """A cache for the first ``tokens`` of a prompt, to be merged into a batch."""

    cache: Cache
    tokens: int


class KeptPrompts:
    """Caches by token sequence, ``limit_bytes`` at most, the least recently used forgotten first.

    ``artifacts`` holds those that outlive the model, under ``name``; ``None`` for none. A model
    whose layers keep only a window, or a state, cannot forget the end of a cache: there, only a sequence that goes on
    after a kept one is served.
    """

    def __init__(
        self, model: Model, limit_bytes: int, artifacts: ArtifactCache | None = None, name: str = ""
    ) -> None:
        self._trie: PrefixTrie[Cache] = PrefixTrie(limit_bytes, shortening=framework.always_trimmable(model))
        self._artifacts = artifacts
        self._name = name
        self._layers = len(framework.new_cache(model))
        kept = artifacts.get("prompts", name) if artifacts is not None and limit_bytes > 0 else None
        if kept is not None and kept.is_dir():
            self._read(kept)

    @property
    def used_bytes(self) -> int:
        """What the caches take together."""
        return self._trie.used_bytes

    def find(self, prompt: tuple[int, ...]) -> Beginning | None:
        """Return the longest beginning of ``prompt`` that is kept, at least one token short of the whole."""
        if len(prompt) < LEAST:
            return None
        match = self._trie.search(prompt)
        if match is None or match.length < LEAST // 2:
            return None
        cache = framework.fork(match.value)
        framework.trim(cache, match.tokens - match.length)
        return Beginning(cache, match.length)

    def wants(self, tokens: tuple[int, ...]) -> bool:
        """Return whether a cache for ``tokens`` would add anything."""
        return len(tokens) >= LEAST and not self._trie.covers(tokens)

    def keep(self, tokens: tuple[int, ...], cache: Cache) -> None:
        """Keep the cache of exactly ``tokens``."""
        if self.wants(tokens) and self._trie.insert(tokens, cache, framework.cache_bytes(cache)):
            # Until it is computed, a cache taken from a batch holds the whole batch in memory.
            begin([layer.state for layer in cache])

    def close(self) -> None:
        """Write what is worth it to disk, and forget everything."""
        if self._artifacts is not None and len(self._trie):
            self._write(self._artifacts)
        self._trie.clear()

    def _write(self, artifacts: ArtifactCache) -> None:
        def write(place: Path) -> None:
            place.mkdir()
            for number, (tokens, cache) in enumerate(self._trie.entries()):
                if number >= _FILES:
                    break
                text = msgspec.json.encode(tokens).decode()
                framework.save_cache(place / f"{number:03}.safetensors", cache, {_TOKENS: text})

        # A disk that is full, or a kind of cache that has no file: the prompts are computed again.
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            artifacts.put("prompts", self._name, write)

    def _read(self, directory: Path) -> None:
        # The most recently used was written first, and what is inserted last is the most recently used.
        for file in sorted(directory.glob("*.safetensors"), reverse=True):
            try:
                cache, metadata = framework.load_cache(file)
                tokens = tuple(msgspec.json.decode(metadata[_TOKENS], type=list[int]))
            except (OSError, RuntimeError, ValueError, KeyError, msgspec.DecodeError):
                file.unlink(missing_ok=True)
                continue
            if len(cache) == self._layers:
                self.keep(tokens, cache)
