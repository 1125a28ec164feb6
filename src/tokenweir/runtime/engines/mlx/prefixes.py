"""A byte-bounded radix trie from token sequences to what was computed for them; the least recently used goes first.

It knows nothing of arrays: an entry is a value with a size. Tokens that two entries begin with are stored once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

Value = TypeVar("Value")
Tokens = tuple[int, ...]


class Match(NamedTuple, Generic[Value]):
    """An entry that begins with the first ``length`` tokens asked for, and how many tokens it holds itself."""

    value: Value
    length: int
    tokens: int


class _Entry(Generic[Value]):
    __slots__ = ("bytes", "length", "node", "value")

    def __init__(self, node: _Node[Value], value: Value, length: int, size: int) -> None:
        self.node = node
        self.value = value
        self.length = length
        self.bytes = size


class _Node(Generic[Value]):
    __slots__ = ("children", "edge", "entry", "parent")

    def __init__(self, edge: Tokens, parent: _Node[Value] | None) -> None:
        self.edge = edge
        self.parent = parent
        self.children: dict[int, _Node[Value]] = {}
        self.entry: _Entry[Value] | None = None


class PrefixTrie(Generic[Value]):
    """Entries by token sequence, at most ``limit_bytes`` of them.

    ``shortening`` says whether an entry can stand for a prefix of itself: then the longest common prefix with any
    entry is a match, and an entry that is the beginning of another is not kept. Otherwise an entry matches
    only a sequence that goes on after the whole of it.
    """

    def __init__(self, limit_bytes: int, *, shortening: bool) -> None:
        self._limit = limit_bytes
        self._shortening = shortening
        self._root: _Node[Value] = _Node((), None)
        self._recent: OrderedDict[int, _Entry[Value]] = OrderedDict()
        self._bytes = 0

    @property
    def used_bytes(self) -> int:
        """What the entries take together."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._recent)

    def entries(self) -> Iterator[tuple[Tokens, Value]]:
        """Yield tokens and value of every entry, the most recently used first."""
        for entry in list(reversed(self._recent.values())):
            yield _path(entry.node), entry.value

    def search(self, tokens: Tokens) -> Match[Value] | None:
        """Return the entry that shares the longest beginning with ``tokens``, and mark it as used.

        The match is shorter than ``tokens``: something is left to compute.
        """
        most = len(tokens) - 1
        node, depth, whole = self._walk(tokens, most)
        found: _Entry[Value] | None = None
        length = depth
        if self._shortening:
            found = _any_below(node)
        else:
            at: _Node[Value] | None = node if whole else node.parent
            while at is not None and (at.entry is None or at.entry.length > most):
                at = at.parent
            if at is not None and at.entry is not None:
                found, length = at.entry, at.entry.length
        if found is None or length < 1:
            return None
        self._recent.move_to_end(id(found))
        return Match(found.value, length, found.length)

    def covers(self, tokens: Tokens) -> bool:
        """Return whether an entry for ``tokens`` would add nothing."""
        node, depth, whole = self._walk(tokens, len(tokens))
        if depth < len(tokens):
            return False
        return self._shortening or (whole and node.entry is not None)

    def insert(self, tokens: Tokens, value: Value, size: int) -> bool:
        """Keep ``value`` of ``size`` bytes for ``tokens``; return whether it was kept.

        What is larger than the limit, or covered by another entry, is not.
        """
        if not tokens or size > self._limit or self.covers(tokens):
            return False
        node = self._grow(tokens)
        if self._shortening:
            above = node.parent
            while above is not None:
                if above.entry is not None:
                    self._drop(above.entry, prune=False)
                above = above.parent
        entry = _Entry(node, value, len(tokens), size)
        node.entry = entry
        self._recent[id(entry)] = entry
        self._bytes += size
        while self._bytes > self._limit:
            self._drop(next(iter(self._recent.values())))
        return True

    def clear(self) -> None:
        """Forget every entry."""
        self._root = _Node((), None)
        self._recent.clear()
        self._bytes = 0

    def _walk(self, tokens: Tokens, most: int) -> tuple[_Node[Value], int, bool]:
        """Follow ``tokens[:most]``: the node reached, the tokens shared, whether its edge was matched to its end."""
        node, depth = self._root, 0
        while depth < most:
            child = node.children.get(tokens[depth])
            if child is None:
                return node, depth, True
            shared = _shared(child.edge, tokens, depth, most)
            depth += shared
            node = child
            if shared < len(child.edge):
                return node, depth, False
        return node, depth, True

    def _grow(self, tokens: Tokens) -> _Node[Value]:
        """Return the node for ``tokens``, made where there is none."""
        node, depth = self._root, 0
        while depth < len(tokens):
            child = node.children.get(tokens[depth])
            if child is None:
                child = _Node(tokens[depth:], node)
                node.children[tokens[depth]] = child
                return child
            shared = _shared(child.edge, tokens, depth, len(tokens))
            if shared < len(child.edge):
                child = _split(child, shared)
            node = child
            depth += shared
        return node

    def _drop(self, entry: _Entry[Value], *, prune: bool = True) -> None:
        del self._recent[id(entry)]
        self._bytes -= entry.bytes
        node = entry.node
        node.entry = None
        while prune and node.parent is not None and node.entry is None and not node.children:
            del node.parent.children[node.edge[0]]
            node = node.parent


def _split(child: _Node[Value], at: int) -> _Node[Value]:
    """Put a node into the middle of the edge to ``child``, and return it."""
    parent = child.parent
    middle: _Node[Value] = _Node(child.edge[:at], parent)
    if parent is not None:
        parent.children[child.edge[0]] = middle
    child.edge = child.edge[at:]
    child.parent = middle
    middle.children[child.edge[0]] = child
    return middle


def _shared(edge: Tokens, tokens: Tokens, start: int, most: int) -> int:
    """Return how many tokens of ``edge`` stand at ``start``, within ``most``."""
    end = min(len(edge), most - start)
    # Whole edges are the common case and are compared at the speed of C.
    if edge[:end] == tokens[start : start + end]:
        return end
    return next(at for at in range(end) if edge[at] != tokens[start + at])


def _any_below(node: _Node[Value]) -> _Entry[Value] | None:
    """Return an entry at or below ``node``. Every leaf has one, so following first children finds it."""
    while node.entry is None:
        child = next(iter(node.children.values()), None)
        if child is None:
            return None
        node = child
    return node.entry


def _path(node: _Node[Value]) -> Tokens:
    parts: list[Tokens] = []
    at: _Node[Value] | None = node
    while at is not None:
        parts.append(at.edge)
        at = at.parent
    return tuple(token for part in reversed(parts) for token in part)
