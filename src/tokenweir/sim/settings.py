"""The settings of the simulator, ``[sim]`` in ``weir.toml``."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from tokenweir.config import SecretRef, SettingsModel
from tokenweir.sim.options import Options


class Settings(SettingsModel):
    """One simulator: where it listens, how fast it is, and what goes wrong.

    A distribution is ``constant:50ms``, ``uniform:50ms..70ms``, ``normal:MEAN,SD``,
    ``lognormal:MEDIAN,SIGMA``, ``gamma:MEAN,CV`` or ``exponential:MEAN``.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65_535, description="Port to listen on; 0 picks a free one.")
    model: str = Field(default="sim", min_length=1, description="Name of the model it says it serves.")
    commit: str | None = Field(
        default=None, description="Commit it says it was built from; without one, Tokenweir's own."
    )
    revision: str | None = Field(
        default=None, description="Model revision it states; without one, a hash of its words and script."
    )
    seed: int = Field(default=0, ge=0, description="Seed of everything that is drawn.")
    ttft: str = Field(
        default="constant:50ms", description="Distribution of the time from admission to the first token."
    )
    itl: str = Field(default="constant:20ms", description="Distribution of the time between tokens.")
    prefill: str = Field(default="0us", description="Time that each input token adds to the TTFT.")
    slowdown: float = Field(
        default=0.0,
        ge=0,
        description="What each further running request adds to every ITL: 0.01 doubles it at 101.",
    )
    max_batch: int = Field(default=0, ge=0, description="Requests that run at once; 0: no limit.")
    max_waiting: int = Field(
        default=0, ge=0, description="Requests that may wait; further ones get 503. 0: no limit."
    )
    kv_tokens: int = Field(
        default=0,
        ge=0,
        description="Tokens of KV cache: a request reserves its input and max_tokens, or waits. 0: no limit.",
    )
    context_tokens: int = Field(
        default=131_072, ge=2, description="Longest input and output together; more gets 400."
    )
    tokens_per_chunk: str = Field(
        default="constant:1",
        description="Distribution of tokens per stream chunk; the token rate stays the same.",
    )
    output_tokens: str = Field(
        default="max", description="Distribution of output lengths; max: always as long as max_tokens allows."
    )
    default_tokens: int = Field(
        default=64, ge=1, description="Output tokens of a request that states no max_tokens."
    )
    eos: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Probability that the answer ends after a token; ignore_eos overrules.",
    )
    prefix_cache_tokens: int = Field(
        default=0, ge=0, description="Tokens of prompts remembered; seen prefixes cost no prefill. 0: none."
    )
    embedding_size: int = Field(default=64, ge=1, description="Length of a vector.")
    early_headers: bool = Field(
        default=False, description="Send the response header on admission, not with the first token."
    )
    strict_model: bool = Field(default=False, description="Answer 404 to the name of another model.")
    script: str | None = Field(default=None, description="JSONL file of scripted replies.")
    tokenizer: str | None = Field(
        default=None, description="A tokenizer.json that counts input tokens; without one, words are counted."
    )
    faults: tuple[str, ...] = Field(
        default=(),
        description="Faults, such as 429;retry-after=2@0.01, stall;after=8;for=2s@#7, 500@every=100.",
    )
    api_key: SecretRef | None = Field(
        default=None, description="Key that clients must send, as env:NAME or file:PATH."
    )
    connections: int = Field(
        default=0, ge=0, description="Connections to be held; refuse to start where descriptors are too few."
    )
    max_body_bytes: int = Field(
        default=33_554_432, ge=1024, description="Longest request body; more gets 413."
    )

    def options(self) -> Options:
        """Return the same in the light form that the simulator's process reads; reads the key.

        Raises:
            ConfigError: the key cannot be read.
        """
        plain = self.model_dump(exclude={"api_key"})
        return Options(**plain, api_key=self.api_key.read() if self.api_key is not None else None)
