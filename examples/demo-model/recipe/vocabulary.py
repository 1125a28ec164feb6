"""The tokenizer: a small byte-level BPE in which every digit is a token, and the chat template."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import jinja2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SIZE: Final = 1024
CONTEXT: Final = 2048
END: Final = "<|end|>"
ASSISTANT: Final = "<|assistant|>"
SPECIAL: Final = (END, "<|system|>", "<|user|>", ASSISTANT, "<|tool|>")
"""Numbered from 0 in this order; a turn is its role's mark, its text and the end mark."""
PIECES: Final = r"\p{N}|\p{L}+ ?|[^\p{L}\p{N}\s]+ ?|\s+"
"""What merges stay within. A space belongs to the word before it, not to the one after: so the last word of an
answer is the same token as that word before a comma, and to copy it is no translation."""
FENCES: Final = ("<tool_call>", "</tool_call>")

TEMPLATE: Final = """\
{%- if messages and messages[0].role == 'system' -%}
{%- set system = messages[0].content -%}{%- set turns = messages[1:] -%}
{%- else -%}
{%- set system = '' -%}{%- set turns = messages -%}
{%- endif -%}
{%- if system or tools -%}
{{- '<|system|>' + system -}}
{%- if tools -%}
{{- ('\\n' if system else '') + 'Tools:' -}}
{%- for tool in tools -%}
{%- set function = tool.function if tool.function is defined else tool -%}
{%- set known = (function.parameters or {}).properties if function.parameters is defined else {} -%}
{{- '\\n' + function.name + '(' + ((known or {}) | join(', ')) + ')' -}}
{%- if function.description -%}{{- ': ' + function.description -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|end|>' -}}
{%- endif -%}
{%- for message in turns -%}
{{- '<|' + message.role + '|>' -}}
{%- if message.content is string -%}
{{- message.content -}}
{%- elif message.content -%}
{%- for part in message.content -%}{%- if part.text is defined -%}{{- part.text -}}{%- endif -%}{%- endfor -%}
{%- endif -%}
{%- for call in message.tool_calls or [] -%}
{%- set tool_call = call.function if call.function is defined else call -%}
{{- '<tool_call>{"name": "' + tool_call.name + '", "arguments": ' -}}
{{- tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson -}}
{{- '}</tool_call>' -}}
{%- endfor -%}
{{- '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""

_RENDER: Final = jinja2.Environment(autoescape=False).from_string(TEMPLATE)  # noqa: S701 - a prompt, not a page


def render(
    turns: Sequence[Mapping[str, object]], tools: Sequence[Mapping[str, object]] = (), *, prompt: bool = False
) -> str:
    """Return the text that the model sees. ``prompt``: up to the mark after which it answers."""
    return _RENDER.render(messages=turns, tools=tools, add_generation_prompt=prompt)


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Return a tokenizer of :data:`SIZE` tokens, the same for the same texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE - len(FENCES),
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # No special tokens: a server that leaves those out of an answer would leave out the fences.
    tokenizer.add_tokens([AddedToken(fence, special=False, normalized=False) for fence in FENCES])
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write what ``mlx_lm`` and ``transformers`` need beside the weights to turn messages into tokens."""
    tokenizer.save(str(directory / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": END,
        "pad_token": END,
        "additional_special_tokens": list(SPECIAL[1:]),
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": TEMPLATE,
    }
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")
