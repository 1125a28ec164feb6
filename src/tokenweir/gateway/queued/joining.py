"""Events of an answer that came in pieces, as of one that came whole."""

from __future__ import annotations

from collections.abc import Sequence

from tokenweir.core.events import Event, Failed, Started, Token


def whole(events: Sequence[Event]) -> list[Event]:
    """Return an answer's events with the tokens of each choice as one, as a server tells them that does not stream."""
    tokens: dict[int, list[Token]] = {}
    for event in events:
        if isinstance(event, Token):
            tokens.setdefault(event.index, []).append(event)
    others: list[Event] = [event for event in events if not isinstance(event, Token)]
    if isinstance(events[-1], Failed):
        return others
    begun = 1 + max((at for at, event in enumerate(others) if isinstance(event, Started)), default=-1)
    return [*others[:begun], *(_joined(tokens[index]) for index in sorted(tokens)), *others[begun:]]


def _joined(tokens: Sequence[Token]) -> Token:
    return Token(
        seq=0,
        text="".join(token.text for token in tokens),
        reasoning="".join(token.reasoning for token in tokens),
        tool_calls=tuple(call for token in tokens for call in token.tool_calls),
        count=sum(1 if token.count is None else token.count for token in tokens),
        index=tokens[0].index,
        logprobs=tuple(one for token in tokens for one in token.logprobs),
    )
