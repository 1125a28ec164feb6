"""A Qwen2-VL directory of random weights, small enough to be made for each test session, without torch."""

from __future__ import annotations

import importlib
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image
from tests.factories.language_models import TEXTS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PATCH = 14
MERGE = 2
IMAGE_PAD = SPECIAL.index("<|image_pad|>")


def random_qwen2_vl(directory: Path, *, seed: int = 5) -> Path:
    """Write the model and return its directory. Needs mlx-vlm, which knows the names and shapes of its tensors."""
    directory.mkdir(parents=True)
    size = _write_tokenizer(directory)
    config = _config(size)
    _write(directory / "config.json", config)
    _write(directory / "preprocessor_config.json", _preprocessor())
    _write(directory / "chat_template.json", {"chat_template": TEMPLATE})
    _write(directory / "generation_config.json", {"eos_token_id": [SPECIAL.index("<|im_end|>"), 0]})
    mx: Any = importlib.import_module("mlx.core")
    utils: Any = importlib.import_module("mlx.utils")
    family: Any = importlib.import_module("mlx_vlm.models.qwen2_vl")
    vlm: Any = importlib.import_module("mlx_vlm.utils")
    model_config = family.ModelConfig.from_dict(config)
    model_config = vlm.update_module_configs(model_config, family, config, ["text", "vision"])
    model = family.Model(model_config)
    mx.random.seed(seed)
    tensors = {
        name: mx.random.normal(array.shape) * (2.0 / array.shape[-1] ** 0.5 if array.ndim > 1 else 0.1)
        + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        for name, array in utils.tree_flatten(model.parameters())
    }
    mx.save_safetensors(str(directory / "model.safetensors"), tensors, metadata={"format": "mlx"})
    return directory


def png(width: int, height: int, colour: tuple[int, int, int] = (200, 40, 40)) -> bytes:
    """Return the file of an image with a colour of its own in each corner."""
    image = Image.new("RGB", (width, height), colour)
    image.paste((20, 90, 220), (0, 0, width // 2, height // 2))
    raw = io.BytesIO()
    image.save(raw, "PNG")
    return raw.getvalue()


def _write_tokenizer(directory: Path) -> int:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=360,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": list(SPECIAL[1:]),
        "clean_up_tokenization_spaces": False,
    }
    _write(directory / "tokenizer_config.json", settings)
    return tokenizer.get_vocab_size()


def _config(size: int) -> dict[str, Any]:
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "vocab_size": size,
        "max_position_embeddings": 1024,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "tie_word_embeddings": False,
        "image_token_id": IMAGE_PAD,
        "video_token_id": SPECIAL.index("<|video_pad|>"),
        "vision_start_token_id": SPECIAL.index("<|vision_start|>"),
        "vision_end_token_id": SPECIAL.index("<|vision_end|>"),
        "torch_dtype": "float32",
        "vision_config": {
            "model_type": "qwen2_vl",
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 64,
            "num_heads": 2,
            "mlp_ratio": 2,
            "in_channels": 3,
            "patch_size": PATCH,
            "spatial_patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 2,
        },
    }


def _preprocessor() -> dict[str, Any]:
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": MERGE,
        "min_pixels": (PATCH * MERGE) ** 2,
        "max_pixels": 200 * 200,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
