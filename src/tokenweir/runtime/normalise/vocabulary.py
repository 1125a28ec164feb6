"""The options that bodies may hold, and what is done about those of other servers.

OpenAI's names are the canonical ones. Beside them stand those of vLLM, of ``mlx-engine`` and of LM Studio's SDK.
Source: OpenAI's API reference; vLLM's sampling parameters; ``create_generator`` and ``load_model`` of mlx-engine;
``LLMPredictionConfigInput`` of LM Studio's SDK.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tokenweir.runtime.normalise.names import Foreign, Form, Option, Vocabulary

_TEXT: Final[frozenset[Form]] = frozenset({"chat", "completion"})
_CHAT: Final[frozenset[Form]] = frozenset({"chat"})
_COMPLETION: Final[frozenset[Form]] = frozenset({"completion"})
_EMBEDDING: Final[frozenset[Form]] = frozenset({"embedding"})
_ALL: Final[frozenset[Form]] = _TEXT | _EMBEDDING


_LOAD: Final[frozenset[Form]] = frozenset({"load"})

_OPTIONS: Final[Mapping[str, Option]] = {
    "model": Option(_ALL),
    "messages": Option(_CHAT),
    "prompt": Option(_COMPLETION),
    "input": Option(_EMBEDDING),
    "encoding_format": Option(_EMBEDDING),
    "dimensions": Option(_EMBEDDING),
    "stream": Option(_TEXT),
    "stream_options": Option(_TEXT),
    "max_tokens": Option(_TEXT, ("max_completion_tokens", "max_new_tokens")),
    "min_tokens": Option(_TEXT),
    "temperature": Option(_TEXT, ("temp",)),
    "top_p": Option(_TEXT, ("top_p_sampling",)),
    "top_k": Option(_TEXT, ("top_k_sampling",)),
    "min_p": Option(_TEXT, ("min_p_sampling",)),
    "repetition_penalty": Option(_TEXT, ("repeat_penalty",)),
    "presence_penalty": Option(_TEXT),
    "frequency_penalty": Option(_TEXT),
    "logit_bias": Option(_TEXT),
    "stop": Option(_TEXT, ("stop_strings",)),
    "seed": Option(_TEXT),
    "n": Option(_TEXT),
    "ignore_eos": Option(_TEXT),
    "logprobs": Option(_TEXT, ("log_probs",)),
    "top_logprobs": Option(_TEXT),
    "tools": Option(_CHAT),
    "tool_choice": Option(_CHAT),
    "chat_template_kwargs": Option(_CHAT),
    "response_format": Option(_TEXT),
    "guided_json": Option(_TEXT, ("json_schema",)),
    "guided_regex": Option(_TEXT),
    "guided_choice": Option(_TEXT),
    "guided_grammar": Option(_TEXT),
    "structured_outputs": Option(_TEXT),
    "structured": Option(_TEXT),
    "priority": Option(_TEXT),
    "timeout": Option(_TEXT),
    "kv_bits": Option(_TEXT),
    "use_draft": Option(_TEXT, ("speculative_decoding_toggle",)),
    "draft_model": Option(_TEXT),
    "draft_tokens": Option(_TEXT, ("num_draft_tokens", "speculative_decoding_num_draft_tokens_exact")),
    "use_prefix_cache": Option(_TEXT, ("cache_prompt",)),
}
"""What is understood, by its canonical name."""

_HARMLESS: Final[Mapping[str, Foreign]] = {
    "user": Foreign(),
    "metadata": Foreign(),
    "safety_identifier": Foreign(),
    "prompt_cache_key": Foreign(),
    "store": Foreign((False,), "nothing is stored here: leave it out"),
    "service_tier": Foreign(("auto", "default"), "use priority: interactive, normal or background"),
}
"""What is accepted and changes nothing, whatever its value where no neutral values are given."""

_AT_LOAD: Final = "it belongs to loading: POST /v1/models/load, or an option of weir runtime"

_FOREIGN: Final[Mapping[str, Foreign]] = {
    "best_of": Foreign((1,), "use n"),
    "echo": Foreign((False,)),
    "suffix": Foreign(("",)),
    "parallel_tool_calls": Foreign((True,)),
    "modalities": Foreign((["text"],), "answers are text"),
    "audio": Foreign(),
    "prediction": Foreign(),
    "web_search_options": Foreign((), "give the model a tool that searches"),
    "functions": Foreign(([],), "use tools"),
    "function_call": Foreign(("none", "auto"), "use tool_choice"),
    "reasoning_effort": Foreign((), "say it in chat_template_kwargs, if the model's template knows it"),
    "verbosity": Foreign(("medium",), "say it in the prompt"),
    "context_overflow_policy": Foreign(("stopAtLimit",), "what is too long is refused: shorten the prompt"),
    "max_kv_size": Foreign((), _AT_LOAD),
    "context_length": Foreign((), _AT_LOAD),
    "context_tokens": Foreign((), _AT_LOAD),
    "weight_bits": Foreign((), _AT_LOAD),
    "quantise": Foreign((), _AT_LOAD),
    "kv_group_size": Foreign((64,), "groups of 64 are used"),
    "quantized_kv_start": Foreign((0,), "the cache is quantised from its start"),
    "repetition_context_size": Foreign((), "the penalty looks at the whole answer and prompt"),
    "min_tokens_to_keep": Foreign((1,)),
    "xtc_probability": Foreign((0, False)),
    "xtc_threshold": Foreign((False,)),
    "typical_p": Foreign((1,)),
    "mirostat": Foreign((0,)),
    "length_penalty": Foreign((1,)),
    "use_beam_search": Foreign((False,)),
    "cpu_threads": Foreign((), "set the number of threads when the runtime starts"),
    "prompt_template": Foreign(
        (), "the model's own chat template is used; for another, send /v1/completions"
    ),
    "chat_template": Foreign((), "the model's own chat template is used; for another, send /v1/completions"),
    "raw_tools": Foreign((), "use tools"),
    "reasoning_parsing": Foreign((), "reasoning is told apart by the model's own marks"),
    "tool_call_stop_strings": Foreign(([],), "use stop"),
    "images_b64": Foreign(([],), "put images into a message, as content parts of type image_url"),
    "max_image_size": Foreign((), "send the image in the size it should have"),
    "stop_token_ids": Foreign(([],), "use stop"),
    "bad_words": Foreign(([],), "use logit_bias"),
    "allowed_token_ids": Foreign(([],), "use guided_choice or guided_regex"),
    "skip_special_tokens": Foreign((True,)),
    "spaces_between_special_tokens": Foreign((True,)),
    "include_stop_str_in_output": Foreign((False,)),
    "truncate_prompt_tokens": Foreign((), "what is too long is refused: shorten the prompt"),
    "add_generation_prompt": Foreign((True,)),
    "continue_final_message": Foreign((False,)),
    "add_special_tokens": Foreign(),
    "documents": Foreign(([],), "put them into a message"),
    "prompt_logprobs": Foreign((0,)),
    "guided_decoding_backend": Foreign(("llguidance", "guidance", "auto")),
    "guided_whitespace_pattern": Foreign((), "white space in guided JSON is fixed"),
    "speculative_decoding_min_draft_length_to_consider": Foreign((0,), "use draft_tokens"),
    "speculative_decoding_min_continue_drafting_probability": Foreign((0,), "use draft_tokens"),
}
"""What other servers know and this one does not do."""


REQUESTS: Final = Vocabulary(_OPTIONS, harmless=_HARMLESS, foreign=_FOREIGN)
"""The names in a request for text or vectors."""

_WITH_REQUEST: Final = "say it with each request"

LOADING: Final = Vocabulary(
    {
        "path": Option(_LOAD, ("model_path", "model")),
        "name": Option(_LOAD, ("model_name", "identifier")),
        "weight_bits": Option(_LOAD, ("quantise", "quantize", "bits")),
        "context_tokens": Option(
            _LOAD, ("context", "context_length", "max_kv_size", "max_model_len", "n_ctx")
        ),
        "draft": Option(_LOAD, ("draft_model", "draft_path")),
    },
    harmless={},
    foreign={
        "vocab_only": Foreign((False,)),
        "trust_remote_code": Foreign((False,), "code that comes with a model is never run: leave it out"),
        "kv_bits": Foreign((), _WITH_REQUEST),
        "kv_group_size": Foreign((64,), "groups of 64 are used"),
        "quantized_kv_start": Foreign((0,), "the cache is quantised from its start"),
        "max_seq_nums": Foreign((), "set runtime.max_batch when the runtime starts"),
        "seed": Foreign((), _WITH_REQUEST),
        "prefill_step_size": Foreign((), "set runtime.prefill_tokens when the runtime starts"),
        "ttl": Foreign((), "set runtime.idle_ttl when the runtime starts"),
    },
)
"""The names in the body that loads a model."""

UNLOADING: Final = Vocabulary(
    {"model": Option(frozenset({"unload"}), ("name", "model_name", "identifier"))}, harmless={}, foreign={}
)
"""The names in the body that unloads a model."""

_TOKENIZE: Final[frozenset[Form]] = frozenset({"tokenize"})

TOKENIZING: Final = Vocabulary(
    {
        "model": Option(_TOKENIZE),
        "prompt": Option(_TOKENIZE, ("content", "text")),
        "messages": Option(_TOKENIZE),
    },
    harmless={},
    foreign={
        "add_special_tokens": Foreign((True,), "tokens are those of a prompt: leave it out"),
        "add_generation_prompt": Foreign((True,)),
        "continue_final_message": Foreign((False,)),
        "return_token_strs": Foreign((False,)),
        "with_pieces": Foreign((False,)),
        "tools": Foreign(([],)),
    },
)
"""The names in the body that asks for tokens."""

_DETOKENIZE: Final[frozenset[Form]] = frozenset({"detokenize"})

DETOKENIZING: Final = Vocabulary(
    {"model": Option(_DETOKENIZE), "tokens": Option(_DETOKENIZE)}, harmless={}, foreign={}
)
"""The names in the body that asks for the text of tokens."""
