"""Every loaded model makes a token before anybody asks it to, so that the first who asks does not wait for that."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Final, NoReturn

from tokenweir.core.errors import WeirError
from tokenweir.core.events import Completed, Failed
from tokenweir.core.requests import GenerateRequest, Message, Sampling
from tokenweir.ports.inference import ModelCard
from tokenweir.runtime.health import ModelStatus
from tokenweir.runtime.http.serving import Serving
from tokenweir.runtime.options import RunOptions
from tokenweir.telemetry.logs import get_logger

_LOG = get_logger("tokenweir.runtime.warmup")
_LOOK_S: Final = 0.25
_LONGEST_PAUSE_S: Final = 8.0
_OPTIONS: Final = RunOptions(use_prefix_cache=False, use_draft=False)
_ONE_TOKEN: Final = Sampling(max_tokens=1, temperature=0.0)


def needs_warming(status: ModelStatus) -> bool:
    """Return whether a model is loaded, could make a token, and has made none yet."""
    speaks = not {"chat", "completion"}.isdisjoint(status.card.capabilities)
    return status.state == "loaded" and speaks and not status.answered


async def warm(serving: Serving, card: ModelCard) -> None:
    """Let a model make one token. Raises WeirError where it cannot."""
    kind = "completion" if "completion" in card.capabilities else "chat"
    request = GenerateRequest(
        kind=kind,
        model=card.name,
        prompt="1",
        messages=(Message(role="user", content="1"),) if kind == "chat" else (),
        sampling=_ONE_TOKEN,
    )
    async with aclosing(serving.generate(request, _OPTIONS)) as events:
        async for event in events:
            if isinstance(event, Failed):
                raise WeirError(event.message)
            if isinstance(event, Completed):
                return


async def warm_loaded(serving: Serving) -> None:
    """Warm every model that needs it, once; one that cannot is told of in the log."""
    for status in serving.models():
        if needs_warming(status):
            try:
                await warm(serving, status.card)
            except WeirError as error:
                _LOG.warning("model not warm", model=status.card.name, error=str(error))


async def keep_warm(serving: Serving) -> NoReturn:
    """Warm what is loaded from now on, as after a restart, until cancelled; what fails is tried again less often."""
    pause_s = _LOOK_S
    while True:
        await asyncio.sleep(pause_s)
        await warm_loaded(serving)
        cold = any(map(needs_warming, serving.models()))
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S) if cold else _LOOK_S
