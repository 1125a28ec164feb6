"""What a model's ``config.json`` says, under whichever of the usual key names it says it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from tokenweir.core.errors import InputError
from tokenweir.core.requests import Json

FILE: Final = "config.json"

_CONTEXT_KEYS: Final = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "max_seq_len",
    "seq_length",
    "n_ctx",
)
_LAYER_KEYS: Final = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
_HEAD_KEYS: Final = ("num_attention_heads", "n_heads", "n_head", "num_heads")
_KV_HEAD_KEYS: Final = ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "multi_query_group_num")
_HIDDEN_KEYS: Final = ("hidden_size", "n_embd", "d_model", "dim", "model_dim")

# Their limit is the extended one already; other kinds of scaling multiply it.
_EXTENDED: Final = frozenset({"llama3", "longrope", "su", "default", "mrope", "proportional"})
_YARN: Final = frozenset({"yarn", "deepseek_yarn", "telechat3-yarn"})
_RECURRENT: Final = frozenset({"mamba", "mamba2", "falcon_mamba", "rwkv7"})


def read_json(path: Path) -> dict[str, Json]:
    """Return the JSON object in a file.

    Raises:
        InputError: it cannot be read, is no JSON, or is no object.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Json])
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}", mend="check the file") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} is no JSON object: {error}", mend="copy or download the file again"
        ) from error


class Configuration:
    """The text model's part of a configuration: ``text_config`` where there is one, else the whole."""

    __slots__ = ("_inner", "_path", "_whole")

    def __init__(self, path: Path, whole: Mapping[str, Json]) -> None:
        self._path = path
        self._whole = whole
        self._inner = whole
        for key in ("text_config", "llm_config", "language_config"):
            part = whole.get(key)
            if isinstance(part, dict):
                self._inner = {**whole, **part}

    def get(self, key: str) -> Json:
        """Return a value of the text model, ``None`` where there is none."""
        return self._inner.get(key)

    @property
    def model_type(self) -> str:
        """The architecture's name; empty where none is stated."""
        value = self._whole.get("model_type")
        return value if isinstance(value, str) else ""

    @property
    def sees(self) -> bool:
        """Whether the model has a part for images."""
        return isinstance(self._whole.get("vision_config"), dict)

    @property
    def quantised_bits(self) -> int | None:
        """Bits of weights that are stored quantised; 0 where the method does not say, ``None`` for plain ones."""
        for key in ("quantization", "quantization_config"):
            value = self._whole.get(key) or self._inner.get(key)
            if isinstance(value, dict):
                bits = value.get("bits")
                return bits if isinstance(bits, int) else 0
        return None

    @property
    def vocabulary(self) -> int | None:
        """Width of the logits."""
        return self._integer(("vocab_size", "n_vocab"))

    def context_tokens(self) -> int | None:
        """Return the longest sequence: the position limit, extended by the stated scaling of rotary embeddings."""
        limit = self._integer(_CONTEXT_KEYS)
        scaling = self.get("rope_scaling") or self.get("rope_parameters")
        if limit is None or not isinstance(scaling, dict):
            return limit
        factor = scaling.get("factor")
        kind = scaling.get("rope_type", scaling.get("type"))
        if not isinstance(kind, str) or kind in _EXTENDED or not isinstance(factor, int | float):
            return limit
        if self.model_type.startswith("gemma3"):  # Scaled linearly, and its limit is the scaled one.
            return limit
        original = scaling.get("original_max_position_embeddings")
        base = original if kind in _YARN and isinstance(original, int) else limit
        return max(limit, int(base * factor))

    def kv_values_per_token(self) -> int:
        """Return how many numbers one token leaves in the cache, an upper bound where layers keep a window only.

        Formula: 2 · layers that attend · key-value heads · head width; latent attention keeps its latent instead.

        Raises:
            InputError: the configuration does not say.
        """
        if self.model_type in _RECURRENT:
            return 0
        layers = self._attending_layers()
        heads = self._needed("num_attention_heads", _HEAD_KEYS)
        latent, rope = self.get("kv_lora_rank"), self.get("qk_rope_head_dim")
        if isinstance(latent, int) and isinstance(rope, int):
            nope, value = self.get("qk_nope_head_dim"), self.get("v_head_dim")
            if self.model_type == "deepseek_v2" and isinstance(nope, int) and isinstance(value, int):
                return layers * heads * (nope + rope + value)
            return layers * (latent + rope)
        width = self.get("head_dim")
        if not isinstance(width, int):
            width = self._needed("hidden_size", _HIDDEN_KEYS) // heads
        per_layer = self.get("num_key_value_heads") or self.get("num_kv_heads")
        if isinstance(per_layer, list):
            return 2 * width * sum(count for count in per_layer if isinstance(count, int))
        kv_heads = 1 if self.get("multi_query") is True else self._integer(_KV_HEAD_KEYS) or heads
        return 2 * layers * kv_heads * width

    def _attending_layers(self) -> int:
        layers = self._needed("num_hidden_layers", _LAYER_KEYS)
        kinds = self.get("layer_types")
        if isinstance(kinds, list) and len(kinds) == layers:
            names = [kind for kind in kinds if isinstance(kind, str)]
            return sum("attention" in name and "linear" not in name for name in names)
        every = self.get("full_attention_interval")
        return -(-layers // every) if isinstance(every, int) and every > 0 else layers

    def _needed(self, name: str, keys: tuple[str, ...]) -> int:
        value = self._integer(keys)
        if value is None:
            raise InputError(
                f"{self._path} does not state {name}, without which the size of the cache is unknown",
                mend=f"add {name} to it, or take the model's original config.json",
            )
        return value

    def _integer(self, keys: tuple[str, ...]) -> int | None:
        for key in keys:
            value = self._inner.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        return None
